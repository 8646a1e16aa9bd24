"""Matrix-SSL as a LightningModule, on the handwritten digits of scikit-learn, in one process or several.

    pip install pytorch-lightning
    python examples/lightning_module.py [--steps 100]

Prints the loss, which falls from about 30.4 to 30.0.
"""

import argparse

import pytorch_lightning as lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import RandomAffine

from matrix_ssl.distributed.losses import matrix_ssl_terms
from matrix_ssl.networks import make_teacher, update_teacher

random_view = RandomAffine(15, translate=(0.1, 0.1), scale=(0.85, 1.15))


class MatrixSSL(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        encoder = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())
        head = nn.Sequential(nn.Linear(1024, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
        self.student = nn.Sequential(encoder, nn.Flatten(), head)
        self.predictor, self.teacher = nn.Linear(64, 64), make_teacher(self.student)

    def training_step(self, batch, index):
        z1, z2 = (self.predictor(self.student(view)) for view in batch)
        p1, p2 = (self.teacher(view) for view in batch)
        loss = matrix_ssl_terms(z1, z2, p1, p2).loss  # of the whole batch, also in several processes
        if self.global_step % 20 == 0 or self.global_step == self.trainer.max_steps - 1:
            self.print(f"step {self.global_step + 1}: loss {loss.item():.3f}")
        return loss

    def on_train_batch_end(self, *_):
        update_teacher(self.teacher, self.student, 0.99)

    def configure_optimizers(self):
        return torch.optim.AdamW([*self.student.parameters(), *self.predictor.parameters()], lr=0.002)


def two_views(images):
    return [torch.stack([random_view(image) for image in images]) for _ in range(2)]


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
lightning.seed_everything(0)
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
loader = DataLoader(images, batch_size=256, shuffle=True, drop_last=True, collate_fn=two_views)
settings = {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 1}
lightning.Trainer(max_steps=parser.parse_args().steps, **settings).fit(MatrixSSL(), loader)
