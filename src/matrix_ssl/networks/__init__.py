"""Encoders, heads and the teacher."""

from matrix_ssl.networks.encoders import SMALL_IMAGE, TINY_RESNET, TinyResNet, build_encoder, take_channels
from matrix_ssl.networks.heads import mlp, predictor, projector
from matrix_ssl.networks.modules import MODULE, forget_encoder, register_encoder, registered_encoder
from matrix_ssl.networks.parts import compute_in_parts, mixes_rows, recompute_blocks
from matrix_ssl.networks.patches import PixelDecoder, encode_visible, has_tokens, patch_pixels
from matrix_ssl.networks.teacher import cosine_momentum, make_teacher, update_teacher

__all__ = [
    "MODULE",
    "SMALL_IMAGE",
    "TINY_RESNET",
    "PixelDecoder",
    "TinyResNet",
    "build_encoder",
    "compute_in_parts",
    "cosine_momentum",
    "encode_visible",
    "forget_encoder",
    "has_tokens",
    "make_teacher",
    "mixes_rows",
    "mlp",
    "patch_pixels",
    "predictor",
    "projector",
    "recompute_blocks",
    "register_encoder",
    "registered_encoder",
    "take_channels",
    "update_teacher",
]
