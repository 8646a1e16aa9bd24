"""Encoders: building and loading those of runs, importing from other programs, and exporting to them."""

from matrix_ssl.encoder.loading import Weights, initialise_encoder, load_encoder

__all__ = ["Weights", "initialise_encoder", "load_encoder"]
