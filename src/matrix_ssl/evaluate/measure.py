"""Label-free measures of features: every rank with its interval, the spectrum, and comparisons of encoders."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.config import system
from matrix_ssl.config.untrusted import GIB
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.feature_rows import FeatureRows
from matrix_ssl.evaluate.similarities import SIMILARITIES, rank_correlation, similarities
from matrix_ssl.matrix import Moments, RankStatistics, of_features
from matrix_ssl.matrix.ranks.intervals import GROUPS
from matrix_ssl.matrix.ranks.report import MEANINGS

RULE = "rank_me"  # the measure that chooses among encoders
COMPARISONS = {
    **SIMILARITIES,
    "mir": "matrix mutual information ratio of the cosine kernels, (S₁ + S₂ − S₁₂) / min(S₁, S₂): how much of the "
    "smaller entropy is shared (Song et al., ICML 2024)",
    "hdr": "matrix entropy difference ratio, |S₁ − S₂| / max(S₁, S₂): 0 where both spread as far (Song et al., ICML "
    "2024)",
}
FAILURES = (
    "A high rank is necessary, not sufficient: features of noise have the highest of all, and an untrained network or "
    "raw pixels can have a higher one than a trained encoder.",
    "Ranks compare encoders of one architecture, one width and one method on one dataset at one number of images; "
    "otherwise the order means little.",
    "Late in a training, features that separate classes better can have a lower rank: where labels exist, even a few, "
    "measure accuracy with matrix-ssl evaluate.",
)
SAMPLE = 1000  # rows whose kernels are compared
_SPECTRUM = 1000  # number of eigenvalues kept
_MORE = 5  # d x d matrices besides those of the groups: of the cosines, of all rows, and for their spectra

Progress = Callable[[int, int], None]  # rows done, number of rows


def measure_rows(
    rows: FeatureRows, *, population: int | None = None, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Computes all ranks of features in one pass.

    Args:
        rows: the features.
        population: a larger number of images to extrapolate to.
        on_progress: called with (rows done, number of rows).

    Returns:
        ``name``, ``samples``, ``width``; ``ranks`` with value, interval and expectation by name; ``spectrum``, the
        largest eigenvalues of the covariance over their sum; and ``mean_share``, the share of the mean in Σ ‖x‖².

    Raises:
        DataError: a row is not finite, the file ends early, or the products of all columns do not fit into memory.
    """
    _check_room(rows.name, rows.width, GROUPS + _MORE)
    state = RankStatistics(rows.width)
    for batch in rows.batches():
        state.add(batch, validate=False)
        if on_progress:
            on_progress(state.count, rows.count)
    spectra = state.spectra()
    report = state.report(spectra=spectra)
    ranks: dict[str, dict[str, float | None]] = {name: {"value": value} for name, value in report.values().items()}
    if state.count >= 16:
        for name, one in state.estimates(population=population, report=report).items():
            ranks[name] = {key: value for key, value in asdict(one).items() if key not in ("samples", "population")}
    eigenvalues = spectra.eigenvalues.flip(0)
    total, mean = eigenvalues.sum(), state.moments().mean.square().sum()
    return {
        "name": rows.name,
        "samples": rows.count,
        "width": rows.width,
        "ranks": ranks,
        "mean_share": (mean / (mean + total)).item() if mean + total > 0 else 0.0,
        "spectrum": (eigenvalues / total if total > 0 else eigenvalues)[:_SPECTRUM].tolist(),
    }


def compare_rows(first: FeatureRows, second: FeatureRows) -> dict[str, Any]:
    """Measures how similar two encoders' features of the same images are.

    Returns:
        The ``COMPARISONS`` that are defined: ``rsa``, ``mir`` and ``hdr`` on ``sample`` rows, the others on all rows.

    Raises:
        DataError: the numbers of rows differ, or the recorded digests of the images do; or as ``measure_rows``.
    """
    check_comparable(first, second)
    both = Moments(first.width + second.width)
    sample: list[Tensor] = []
    for x, y in _aligned(first, second):
        both.add(torch.cat([x.double(), y.double()], dim=1), validate=False)
        if sum(map(len, sample)) < SAMPLE:
            sample.append(torch.cat([x.double(), y.double()], dim=1))
    rows = torch.cat(sample)[:SAMPLE]
    x, y = rows[:, : first.width], rows[:, first.width :]
    return {"first": first.name, "second": second.name, "samples": first.count, "sample": len(rows),
            **similarities(both.covariance(), first.width, samples=first.count), **rank_correlation(x, y),
            **_kernels(x, y)}  # fmt: skip


def check_comparable(first: FeatureRows, second: FeatureRows) -> None:
    """Raises DataError as ``compare_rows`` does, before a row is read."""
    _check_room(f"{first.name} and {second.name}", first.width + second.width, _MORE)
    if first.count != second.count:
        raise DataError(
            f"{first.name} has {first.count} rows and {second.name} {second.count}: --against compares the features of "
            f"the same images in the same order."
        )
    if first.digest and second.digest and first.digest != second.digest:
        raise DataError(f"{first.name} and {second.name} are features of different datasets: pass those of one.")


def _check_room(name: str, width: int, matrices: int) -> None:
    """Raises DataError if this many float64 matrices of all pairs of columns do not fit into free memory."""
    size, (_, free) = 8 * matrices * width**2, system.memory()
    if size > free:
        raise DataError(
            f"{name}: the products of {width:,} columns take {size / GIB:.1f} GiB and {free / GIB:.1f} GiB are free; "
            f"measure features with fewer columns, or on a larger machine."
        )


def choose(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Picks the encoder with the highest RankMe, and says whether the second best is outside its interval.

    Returns:
        ``rule``; the names ``chosen`` and ``second``; ``distinct``; and ``failures``, the sentences to show with it.
    """
    ordered = sorted(measured, key=lambda one: -one["ranks"][RULE]["value"])
    best, second = ordered[:2]
    low = best["ranks"][RULE].get("low", best["ranks"][RULE]["value"])
    return {"rule": RULE, "chosen": best["name"], "second": second["name"],
            "distinct": second["ranks"][RULE]["value"] < low, "failures": list(FAILURES)}  # fmt: skip


def meanings() -> dict[str, dict[str, str]]:
    """What the ranks mean, by name."""
    return {name: meaning._asdict() for name, meaning in MEANINGS.items()}


def _aligned(first: FeatureRows, second: FeatureRows) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the same rows of both."""
    left, right = first.batches(), second.batches()
    x, y = next(left, None), next(right, None)
    while x is not None and y is not None:
        size = min(len(x), len(y))
        yield x[:size], y[:size]
        x = x[size:] if len(x) > size else next(left, None)
        y = y[size:] if len(y) > size else next(right, None)


def _kernels(x: Tensor, y: Tensor) -> dict[str, float]:
    """MIR and HDR of the cosine kernels; empty if a row is zero, since it has no direction."""
    unit = [F.normalize(rows, dim=1) for rows in (x, y) if not (rows == 0).all(1).any()]
    if len(unit) < 2:
        return {}
    return {
        "mir": of_features.matrix_mutual_information_ratio(*unit, validate=False).item(),
        "hdr": of_features.entropy_difference_ratio(*unit, validate=False).item(),
    }
