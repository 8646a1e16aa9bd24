"""Symmetric matrices with chosen eigenvalues, for the tests of matrix functions."""

import functools

import numpy as np
import torch
from hypothesis import strategies as st


def positive(eigenvalues, *, seed=0, dtype=torch.float64):
    """A symmetric matrix with these eigenvalues in a random basis."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    basis = torch.from_numpy(basis)
    a = (basis * values) @ basis.mT
    return ((a + a.mT) / 2).to(dtype)


def rows(n, d, *, seed=0, rank=None, dtype=torch.float64):
    """Random features (n, d), of a rank if one is given."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, d)) if rank is None else r.standard_normal((n, rank)) @ r.standard_normal((rank, d))
    return torch.from_numpy(x).to(dtype)


def symmetric_part(a):
    """(a + aᵀ) / 2: finite differences of a single element are not symmetric."""
    return (a + a.mT) / 2


quick_gradcheck = functools.partial(torch.autograd.gradcheck, fast_mode=True)  # along random directions
quick_gradgradcheck = functools.partial(torch.autograd.gradgradcheck, fast_mode=True)


def unit_kernel(n, d, *, seed=0):
    """A kernel with ones on its diagonal: inner products of random rows of length one."""
    unit = torch.nn.functional.normalize(rows(n, d, seed=seed), dim=1)
    return unit @ unit.mT


eigenvalue_lists = st.lists(st.floats(1e-3, 5.0), min_size=1, max_size=6)
pairs = st.integers(1, 6).flatmap(
    lambda d: st.tuples(*[st.lists(st.floats(1e-3, 5.0), min_size=d, max_size=d) for _ in range(2)])
)
SPECTRA = {
    "distinct": [0.01, 0.3, 0.9, 2.0],
    "repeated": [0.2, 0.2, 0.2, 1.5],
    "nearly repeated": [0.2, 0.2 + 1e-9, 0.2 + 1e-7, 1.5],
    "identity": [1.0, 1.0, 1.0, 1.0],
    "multiple of the identity": [0.05] * 4,
    "wide": [1e-4, 1e-2, 1.0, 10.0],
}
DEFICIENT = {"rank two": [0.0, 0.0, 0.3, 1.2], "zero": [0.0] * 4, "tiny": [1e-14, 1e-9, 1e-3, 0.4]}
