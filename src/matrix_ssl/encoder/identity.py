"""Identifies an encoder, so that features are compared only with those of the same encoder."""

from torch import nn

from matrix_ssl.config import DataConfig
from matrix_ssl.config.reading import Reading
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.files import fingerprint


def encoder_digest(encoder: nn.Module, images: DataConfig) -> str:
    """A digest of everything that determines an image's features: weights, layer, and how images are prepared."""
    form = [type(encoder).__name__, *(getattr(encoder, name, None) for name in ("layer", "grid"))]
    prepared = [images.image_size, images.crop_fraction, images.mean, images.std, images.white_level]
    prepared += [images.channels, images.value_range, images.pages] if images.reading != Reading() else []
    prepared += [images.crop_mode] if images.crop_mode != "centre" else []  # earlier versions had no other
    return fingerprint(checkpoint.digest(encoder.state_dict()), prepared, form)
