"""A small residual network for small images."""

import itertools

import torch
from torch import Tensor, nn


class TinyResNet(nn.Module):
    """A small residual network: 3x3 stem, one basic block a stage, global average pooling.

    Stages halve the resolution and double the channels until 4 pixels are left, four stages at most. The stem halves
    the resolution of images above 32 pixels.
    """

    def __init__(self, *, channels: int, image_size: int, width: int):
        super().__init__()
        stem_stride = 1 if image_size <= 32 else 2  # a full-resolution first stage would take most of the time
        stages = max(1, min(4, (image_size // stem_stride // 4).bit_length()))
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        widths = [width, *(width * 2**i for i in range(stages))]
        self.blocks = nn.Sequential(
            *(BasicBlock(a, b, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(itertools.pairwise(widths)))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels, h, w) to features (n, k)."""
        return self.blocks(self.stem(x)).mean((2, 3))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity, or a 1x1 convolution where the shape changes (He et al., CVPR 2016)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) to (n, channels_out, h / stride, w / stride)."""
        return torch.relu(self.shortcut(x) + self.residual(x))
