"""Image datasets: finding, reading, splitting and augmenting them. ``open_source`` opens one.

Names are loaded on first use: the random numbers of ``matrix_ssl.data.randomness`` need only NumPy.
"""

from typing import TYPE_CHECKING

from matrix_ssl.errors import load_on_use

if TYPE_CHECKING:
    from matrix_ssl.data.base import Source
    from matrix_ssl.data.sources import has_test_split, open_source, split_source

__all__ = ["Source", "has_test_split", "open_source", "split_source"]

__getattr__ = load_on_use(__name__, __all__, ("matrix_ssl.data.base", "matrix_ssl.data.sources"))
