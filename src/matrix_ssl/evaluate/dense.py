"""Alternative features of an encoder: of a block, of every patch, or averaged over an image and its mirror image."""

import torch
from torch import Tensor, nn

from matrix_ssl.config import DataConfig
from matrix_ssl.errors import ConfigError, did_you_mean
from matrix_ssl.evaluate.blocks import find_blocks, positions


class BlockFeatures(nn.Module):
    """The output of a block of an encoder: the mean over its positions (n, k), or every patch (n, patches · k).

    Tokens before the patch tokens, such as the class token, are included in the mean but are not patches. The final
    norm of a transformer comes after its last block, so it is not applied.

    Args:
        encoder: maps images (n, c, s, s) to features.
        data: the size and the channels of the images.
        layer: the name of a block, as in ``blocks.find_blocks``; None: the last block.
        patches: return every patch instead of the mean.

    Attributes:
        grid: rows and columns of the patches; None for the mean.

    Raises:
        ConfigError: there is no such block, or its output has no patches.
    """

    def __init__(self, encoder: nn.Module, data: DataConfig, *, layer: str | None, patches: bool):
        super().__init__()
        blocks = find_blocks(encoder)
        if not blocks or (layer is not None and layer not in blocks):
            raise ConfigError(f"The encoder has no block {layer!r}.{did_you_mean(layer or '', blocks)}")
        self.layer = layer or list(blocks)[-1]
        self.grid: tuple[int, int] | None = None
        self._encoder, self._patches = encoder, patches
        if patches:
            example = next(encoder.parameters()).new_zeros(1, len(data.mean), data.image_size, data.image_size)
            with torch.no_grad():
                self.grid = self._grid(self._output(example))

    def forward(self, images: Tensor) -> Tensor:
        """The features (n, k), or (n, patches · k), row by row."""
        tokens = positions(self._output(images))
        if self.grid is None:
            return tokens.mean(dim=1)
        return tokens[:, tokens.shape[1] - self.grid[0] * self.grid[1] :].flatten(1)

    def _output(self, images: Tensor) -> Tensor:
        kept: list[Tensor] = []
        block = self._encoder.get_submodule(self.layer)
        handle = block.register_forward_hook(lambda _, __, output: kept.append(_tensor(output).detach().clone()))
        try:
            self._encoder(images)
        finally:
            handle.remove()
        return kept[-1]

    def _grid(self, output: Tensor) -> tuple[int, int]:
        if output.ndim == 4:
            _, a, b, c = output.shape
            return (a, b) if a == b != c else (b, c)
        side = int(output.shape[1] ** 0.5) if output.ndim == 3 else 0  # images are square; the rest are not patches
        if side < 2:
            raise ConfigError(
                f"The output of {self.layer!r} has the shape {tuple(output.shape[1:])}, without patches: choose an "
                "earlier block by --layer."
            )
        return side, side


class MirrorMean(nn.Module):
    """The mean of the features of an image and of its mirror image (test-time augmentation).

    Args:
        encoder: maps images (n, c, h, w) to features (n, k).

    Attributes:
        grid, layer: those of ``encoder``, if it has any; with a grid, the mirror image's patches are flipped back.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self._encoder = encoder
        self.grid: tuple[int, int] | None = getattr(encoder, "grid", None)
        self.layer: str | None = getattr(encoder, "layer", None)

    def forward(self, images: Tensor) -> Tensor:
        """The features (n, k)."""
        straight, mirrored = self._encoder(images), self._encoder(images.flip(-1))
        if self.grid is not None:
            mirrored = mirrored.unflatten(1, (*self.grid, -1)).flip(2).flatten(1)
        return (straight + mirrored) / 2


def _tensor(output: object) -> Tensor:
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ConfigError(f"The block puts out a {type(output).__name__}, not a tensor: choose another by --layer.")
    return output
