"""A Vision Transformer and the matrix entropy loss in the Trainer of transformers, on handwritten digits.

    pip install transformers accelerate
    python examples/transformers_trainer.py [--steps 40]

Prints the loss, which falls from about -4.3 to -5.4.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision.transforms import RandomAffine
from transformers import Trainer, TrainingArguments, ViTConfig, ViTModel

from matrix_ssl.losses import matrix_entropy_loss

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
random_view = RandomAffine(15, translate=(0.1, 0.1), scale=(0.85, 1.15))


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.vit = ViTModel(ViTConfig(image_size=8, patch_size=2, num_channels=1, **SIZES), add_pooling_layer=False)
        self.projector = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))

    def forward(self, images):
        return self.projector(self.vit(images).last_hidden_state[:, 0])


class TwoViewTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return matrix_entropy_loss(model(inputs["view1"]), model(inputs["view2"]))


def two_views(images):
    return {name: torch.stack([random_view(image) for image in images]) for name in ("view1", "view2")}


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=40)
settings = {"save_strategy": "no", "report_to": "none", "logging_steps": 5, "remove_unused_columns": False}
settings |= {"logging_first_step": True, "dataloader_pin_memory": False}
settings |= {"per_device_train_batch_size": 256, "learning_rate": 0.002, "max_steps": parser.parse_args().steps}
torch.manual_seed(0)
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
trainer = TwoViewTrainer(Projected(), TrainingArguments(**settings), train_dataset=images, data_collator=two_views)
trainer.train()
for line in trainer.state.log_history[:-1]:
    print(f"step {line['step']}: loss {float(line['loss']):.3f}")
