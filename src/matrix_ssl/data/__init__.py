"""Datasets of images: finding, reading, splitting and augmenting them. ``open_source`` opens one."""

from matrix_ssl.data.base import Source
from matrix_ssl.data.sources import has_test_split, open_source, split_source

__all__ = ["Source", "has_test_split", "open_source", "split_source"]
