"""The matrix entropy loss in a loop of Accelerate, on the handwritten digits of scikit-learn.

    pip install accelerate
    python examples/accelerate_loop.py [--steps 100]
    accelerate launch --num_processes 2 examples/accelerate_loop.py

Prints the loss of the whole batch, of all processes, which falls from about -4.8 to -6.0.
"""

import argparse
from itertools import count

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import RandomAffine

from matrix_ssl.distributed.losses import matrix_entropy_terms

random_view = RandomAffine(15, translate=(0.1, 0.1), scale=(0.85, 1.15))


class TwoViews(nn.Sequential):
    def forward(self, view1, view2):
        return super().forward(torch.cat([view1, view2])).chunk(2)  # one pass, as DistributedDataParallel demands


def two_views(images):
    return [torch.stack([random_view(image) for image in images]) for _ in range(2)]


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps

set_seed(0)
accelerator = Accelerator()
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
size = 256 // accelerator.num_processes
loader = DataLoader(images, batch_size=size, shuffle=True, drop_last=True, collate_fn=two_views)
model = TwoViews(nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

batches = (batch for _ in count() for batch in loader)
for step in range(1, steps + 1):
    view1, view2 = next(batches)
    loss = matrix_entropy_terms(*model(view1, view2)).loss  # of the rows of all processes
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    if step == 1 or step % 20 == 0 or step == steps:
        accelerator.print(f"step {step}: loss {loss.item():.3f}")
