"""Measurements and experiments behind the figures of the docs."""
