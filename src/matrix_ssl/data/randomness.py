"""Random numbers as a pure function of (seed, epoch, sample, view, draw).

Nothing here has state, so a resumed run, or one with a different number of workers or processes, sees the same sample
order and the same augmentations. The generator is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)
applied to a running hash of the coordinates: it passes the usual statistical batteries and needs only 64-bit
multiplications, which NumPy does vectorised.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def hash_integers(*coordinates: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """Uniform 64-bit integers from non-negative integers or arrays, which broadcast and whose order matters."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):  # wrapping multiplication is the point
        for coordinate in coordinates:
            state = _mix(state + _GOLDEN + _mix(np.asarray(coordinate).astype(np.uint64) + _GOLDEN))
    return state


def uniform(*coordinates: int | NDArray[np.integer], draws: int) -> NDArray[np.float64]:
    """``draws`` independent uniform numbers in [0, 1) for every coordinate tuple; the draws are the last axis."""
    columns = [np.asarray(c)[..., None] for c in coordinates]
    bits = hash_integers(*columns, np.arange(draws))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def short_seed(seed: int) -> int:
    """A seed below 2³² for generators of other libraries: a smaller seed as it is, a hash of a larger one."""
    return seed if seed < 2**32 else int(hash_integers(seed)) % 2**32


def permutation(n: int, *coordinates: int) -> NDArray[np.int64]:
    """A random order of ``range(n)`` that depends only on the coordinates."""
    return np.argsort(hash_integers(*coordinates, np.arange(n)), kind="stable")
