"""Encoders: building and loading those of runs, importing those of other programs, exporting ours for them."""

from matrix_ssl.encoder.loading import Weights, initialise_encoder, load_encoder

__all__ = ["Weights", "initialise_encoder", "load_encoder"]
