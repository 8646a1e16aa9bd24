"""What a user should know, before the first step, about images, and settings that do not suit these or the network."""

from torch import nn

from matrix_ssl.config import RunConfig
from matrix_ssl.data.base import Source
from matrix_ssl.networks.patches import patch_side

_COLOUR_CHANGES = ("saturation", "hue", "grayscale", "solarize")  # of views
_MANY_COPIES = 0.1  # fraction of the images


def on_settings(config: RunConfig, encoder: nn.Module, *, images: int) -> list[str]:
    """Sentences on augmentations that are left out, patches that miss the edge of images, and too many prototypes.

    Args:
        images: number of training images.
    """
    remarks = [_left_out(config), _edges(config, encoder), _prototypes(config, images)]
    return [remark for remark in remarks if remark]


def on_copies(source: Source) -> list[str]:
    """A warning if many images are copies of others; none if not, and for datasets too large to look."""
    pairs, count = source.copies(), len(source)
    if len(pairs) <= _MANY_COPIES * count:
        return []
    copy, first = map(source.where, pairs[0])
    return [
        f"Warning: {len(pairs):,} of {count:,} images are copies of others, byte for byte, such as {copy} of {first}: "
        f"unless these are to count more, train on the other {count - len(pairs):,}."
    ]


def _left_out(config: RunConfig) -> str:
    """A sentence on augmentations that are left out because they are for colours; empty if there are none."""
    changes = [name for name in _COLOUR_CHANGES if any(getattr(view, name) for view in config.views)]
    if len(config.data.mean) == 3 or not changes:
        return ""
    count = len(config.data.mean)
    return (
        f"Left out of the views of {count} channel{'s' * (count > 1)}, as they are for colours: {', '.join(changes)}. "
        "The recipes microscopy, satellite and medical have views for such images."
    )


def _edges(config: RunConfig, encoder: nn.Module) -> str:
    """A warning if the patches of an encoder leave out the edge of the images; empty if they do not."""
    size, side = config.data.image_size, patch_side(encoder)
    if not side or size % side == 0:
        return ""
    return (
        f"Warning: network.encoder={config.network.encoder!r} sees {size - size % side} of {size} rows and columns of "
        f"the images, which it cuts into patches of {side}: use --set data.image_size={size - size % side + side} or "
        f"another multiple of {side}."
    )


def _prototypes(config: RunConfig, images: int) -> str:
    """A sentence on a method that has more prototypes than the training has images; empty for any other."""
    prototypes = config.method.options.get("prototypes")
    if not isinstance(prototypes, int) or prototypes <= images:
        return ""
    return (
        f"{config.method.name} has {prototypes} prototypes for {images} images. A few hundred serve small data as well "
        "and make the steps of a small network many times faster: use --set method.prototypes=256, for example."
    )
