"""Vision transformers that see only some patches of an image, and a decoder that predicts the pixels of the others.

Patches are numbered row by row. The encoder is a plain timm vision transformer; variants with a class token, with
registers or with neither all work, whether their features are the class token or the mean of the patch tokens.

Reference: He, Chen, Xie, Li, Dollár and Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
section 3, https://arxiv.org/abs/2111.06377.
"""

from typing import Any

import torch
from torch import Tensor, nn

from matrix_ssl.errors import ConfigError, import_extra

_VISION_TRANSFORMER = "timm.models.vision_transformer.VisionTransformer"
_LONGEST_WAVE = 10_000.0  # of the positions, in patches over 2π: that of Vaswani et al., NeurIPS 2017


def has_tokens(encoder: nn.Module) -> bool:
    """Whether ``encode_visible`` takes an encoder: a plain timm vision transformer without attention pooling."""
    kind = type(encoder)
    return f"{kind.__module__}.{kind.__qualname__}" == _VISION_TRANSFORMER and getattr(encoder, "attn_pool", 0) is None


def patch_side(encoder: nn.Module) -> int:
    """Side of the patches into which an encoder of timm cuts images, leaving out what remains at their ends, in pixels.

    0 for encoders that do not cut images into patches, or that fill up the last ones.
    """
    embedding = next((part for part in encoder.modules() if type(part).__name__ == "PatchEmbed"), None)
    cut = getattr(embedding, "proj", None)
    if not isinstance(cut, nn.Conv2d) or cut.stride != cut.kernel_size or cut.padding != (0, 0):
        return 0
    return 0 if getattr(embedding, "dynamic_img_pad", False) else cut.stride[0]


def patch_pixels(images: Tensor, side: int) -> Tensor:
    """Images (n, c, h, w) as patches (n, h/side · w/side, side² · c), row by row, the channels of a pixel together."""
    n, c, h, w = images.shape
    if h % side or w % side:
        raise ValueError(f"Images of {h} by {w} pixels cannot be cut into patches of {side}.")
    cut = images.reshape(n, c, h // side, side, w // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(n, (h // side) * (w // side), side * side * c)


def encode_visible(encoder: Any, images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and features of an encoder that sees only some patches of each image, at their positions.

    With all patches visible, in any order, the features are those of ``encoder(images)``.

    Args:
        encoder: one that ``has_tokens`` accepts.
        images: (n, c, s, s).
        visible: (n, k) integers, the visible patches of each image.

    Returns:
        Tokens after the last norm (n, prefix + k, width), with class token and registers first, and features
        (n, width).
    """
    tokens = encoder._pos_embed(encoder.patch_embed(images))
    prefix = encoder.num_prefix_tokens
    patches = tokens[:, prefix:].take_along_dim(visible[..., None], 1)
    seen = torch.cat([tokens[:, :prefix], patches], 1)
    tokens = encoder.norm(encoder.blocks(encoder.norm_pre(seen)))
    # where features are a mean, timm applies its last norm after it, and ``norm`` does nothing
    return encoder.fc_norm(tokens), encoder.forward_head(tokens)


class PixelDecoder(nn.Module):
    """A small transformer from the tokens of visible patches to the pixels of all patches.

    One learned vector stands in for every patch that was not seen; positions are encoded by fixed sines and cosines, so
    any number of rows and columns is possible.

    Args:
        dim_in: width of the encoder's tokens.
        dim_out: number of values per patch.
        width: width of the decoder's tokens, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.

    Raises:
        ConfigError: the width is not such a multiple.
        MissingExtra: timm is not installed.
    """

    def __init__(self, dim_in: int, dim_out: int, *, width: int, depth: int, heads: int):
        super().__init__()
        if width % heads or width % 4:
            raise ConfigError(f"The decoder's width {width} must be a multiple of 4 and of its {heads} heads.")
        block = import_extra("timm.models.vision_transformer", extra="timm").Block
        self.embedding = nn.Linear(dim_in, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.Sequential(*(block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, dim_out)
        nn.init.normal_(self.mask_token, std=0.02)  # as in the published code
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, visible: Tensor, *, rows: int, columns: int) -> Tensor:
        """Tokens (n, prefix + k, dim_in) of the patches ``visible`` (n, k) to pixels (n, rows · columns, dim_out)."""
        x = self.embedding(tokens)
        prefix = x.shape[1] - visible.shape[1]
        hidden = self.mask_token.to(x.dtype).expand(len(x), rows * columns, -1)
        places = visible[..., None].expand(-1, -1, x.shape[2])
        patches = hidden.scatter(1, places, x[:, prefix:]) + grid_positions(rows, columns, like=x)
        x = self.norm(self.blocks(torch.cat([x[:, :prefix], patches], 1)))
        return self.pixels(x[:, prefix:])


def grid_positions(rows: int, columns: int, *, like: Tensor) -> Tensor:
    """Position embeddings (rows · columns, width) of a grid: sines and cosines of the row, then of the column.

    ``like`` (..., width) gives the width, a multiple of 4, and the device and dtype of the result.
    """
    quarter = like.shape[-1] // 4
    steps = torch.arange(quarter, device=like.device, dtype=torch.float32) / quarter
    frequencies = _LONGEST_WAVE**-steps
    waves = [
        torch.arange(count, device=like.device, dtype=torch.float32)[:, None] * frequencies for count in (rows, columns)
    ]
    row, column = (torch.cat([wave.sin(), wave.cos()], 1) for wave in waves)
    both = torch.cat([row[:, None].expand(-1, columns, -1), column.expand(rows, -1, -1)], -1)
    return both.reshape(rows * columns, 4 * quarter).to(like.dtype)
