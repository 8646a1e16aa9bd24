"""How much AP depends on the images on which it was measured: the bootstrap over images.

Images are drawn with replacement; an image drawn twice counts twice, with its objects and detections. Matching
within an image does not change, so a resample costs one cumulative sum per category instead of an evaluation. The
interval is for one trained detector: it does not include the spread over training seeds. If the resamples agree, as
with a single image or where every object or none is found, they say nothing about other images: there is no interval.

Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3 (percentile intervals).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.data.randomness import uniform

_STREAM = 0xB007  # random stream that keeps the resamples independent of other random numbers
_LEVELS = (0.025, 0.975)
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class _Matches:
    """One category's detections, in order of decreasing score, and its objects."""

    image: NDArray[np.int64]  # (detections,)
    right: NDArray[np.bool_]  # (thresholds, detections)
    wrong: NDArray[np.bool_]  # likewise; for an ignored detection, neither is true
    objects: NDArray[np.int64]  # (images,), number of objects, without ignored ones


def resample(evaluation: Any, *, images: int, resamples: int, seed: int) -> dict[str, list[float] | None]:
    """95 % intervals of AP and AP50 over resamples of the images; ``evaluation`` is a COCOeval after ``evaluate``.

    None where there is no object, or the resamples agree.
    """
    matches = _collect(evaluation, images)
    drawn = (uniform(seed, _STREAM, np.arange(resamples), draws=images) * images).astype(np.int64)
    values = [average_precision(matches, np.bincount(row, minlength=images)) for row in drawn]
    defined = [value for value in values if value is not None]
    return {name: _interval([value[place] for value in defined]) for place, name in enumerate(("AP", "AP50"))}


def average_precision(matches: Sequence[_Matches], weights: NDArray[np.int64]) -> tuple[float, float] | None:
    """AP and AP50 with every image counted ``weights[image]`` times; None if there is no object."""
    precisions = [value for match in matches if (value := _precisions(match, weights)) is not None]
    if not precisions:
        return None
    mean = np.mean(precisions, axis=0)
    return float(mean.mean()), float(mean[0])


def _precisions(match: _Matches, weights: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Mean precision over the recall levels at every threshold, (thresholds,)."""
    objects = int(weights @ match.objects)
    if not objects:
        return None
    weight = weights[match.image]
    right, wrong = np.cumsum(match.right * weight, axis=1), np.cumsum(match.wrong * weight, axis=1)
    precision = right / np.maximum(right + wrong, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or above
    padded = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # for recall levels that are not reached
    rows = zip(padded, right / objects, strict=True)
    return np.array([row[np.searchsorted(recall, _RECALLS)].mean() for row, recall in rows])


def _collect(evaluation: Any, images: int) -> list[_Matches]:
    """Matches of every category over all areas; pycocotools stores results by category, area and image."""
    areas, thresholds = len(evaluation.params.areaRng), len(evaluation.params.iouThrs)
    return [
        _match(evaluation.evalImgs[first : first + images], thresholds)
        for first in range(0, len(evaluation.evalImgs), areas * images)
    ]


def _match(results: Sequence[dict[str, Any] | None], thresholds: int) -> _Matches:
    objects = np.zeros(len(results), dtype=np.int64)
    image, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
    matched, ignored = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
    for place, result in enumerate(results):
        if result is not None:
            objects[place] = int(np.sum(np.asarray(result["gtIgnore"]) == 0))
            scores.append(np.asarray(result["dtScores"], dtype=np.float64))
            image.append(np.full(len(result["dtScores"]), place))
            matched.append(np.asarray(result["dtMatches"]) > 0)
            ignored.append(np.asarray(result["dtIgnore"]).astype(bool))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit, skip = np.concatenate(matched, axis=1)[:, order], np.concatenate(ignored, axis=1)[:, order]
    return _Matches(np.concatenate(image)[order], hit & ~skip, ~hit & ~skip, objects)


def _interval(values: list[float]) -> list[float] | None:
    low, high = np.quantile(values, _LEVELS).tolist() if values else (0.0, 0.0)
    return [low, high] if low < high else None
