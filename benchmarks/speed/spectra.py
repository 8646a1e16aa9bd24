"""Random outputs of a teacher and a student with a given spectrum."""

import torch
from torch import Tensor

NOISE = 0.75  # student = teacher + NOISE · (rows of the same spectrum): cosine of two rows about 1/√(1 + NOISE²) = 0.8
RANK_ONE = 1e-4  # variance of every other direction beside the one that is left in "rank one"
SPECTRA = ("flat", "1/√k", "1/k", "1/k²", "rank 8", "rank one")


def variances(spectrum: str, d: int) -> Tensor:
    """Variance of each of d columns, float64, up to a common factor."""
    k = torch.arange(1, d + 1, dtype=torch.float64)
    found = {
        "flat": torch.ones_like(k),
        "1/√k": k**-0.5,
        "1/k": k**-1,
        "1/k²": k**-2,
        "rank 8": (k <= 8).double(),
        "rank one": torch.where(k == 1, 1.0, RANK_ONE),
    }
    return found[spectrum]


def outputs(spectrum: str, n: int, d: int, *, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Teacher p and student z, (n, d) each, rows not normalised: Gaussian columns with those variances."""
    generator = torch.Generator().manual_seed(seed)
    columns = variances(spectrum, d).sqrt()
    teacher, noise = (torch.randn(n, d, dtype=torch.float64, generator=generator) * columns for _ in range(2))
    return teacher.to(dtype), (teacher + NOISE * noise).to(dtype)
