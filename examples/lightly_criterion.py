"""The matrix entropy loss as the criterion of a SimCLR loop of lightly, on the handwritten digits of scikit-learn.

    pip install lightly
    python examples/lightly_criterion.py [--steps 100]

Prints the loss, which falls from about -4.3 to -6.7.
"""

import argparse
from itertools import count

import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from matrix_ssl.losses import matrix_entropy_loss

view = transforms.RandomAffine(15, translate=(0.1, 0.1), scale=(0.85, 1.15))


class Digits(Dataset):
    def __init__(self):
        self.images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
        self.transform = MultiViewTransform([view, view])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index])


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps

torch.manual_seed(0)
loader = DataLoader(Digits(), batch_size=256, shuffle=True, drop_last=True)
backbone = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten())
model = nn.Sequential(backbone, SimCLRProjectionHead(1024, 256, 64))
criterion = matrix_entropy_loss  # instead of NTXentLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)

batches = (batch for _ in count() for batch in loader)
for step in range(1, steps + 1):
    view1, view2 = next(batches)
    loss = criterion(model(view1), model(view2))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step == 1 or step % 20 == 0 or step == steps:
        print(f"step {step}: loss {loss.item():.3f}")
