"""The names of measures and of baselines, in files and in tables."""

from typing import NamedTuple

BASELINES = {"raw_pixels": "raw pixels", "random_network": "untrained network"}
_TRAINED = {"linear_sgd": "linear-sgd", "semi_supervised_list": "fine-tuned, list", "fine_tune": "fine-tuned, all"}


class Measure(NamedTuple):
    """A measure: its key in files and its heading in tables."""

    key: str
    heading: str


def measure_name(key: str) -> str:
    """The heading of a measure, such as ``20-NN`` for ``knn_20``."""
    kind, _, number = key.rpartition("_")
    if kind == "knn":
        return f"{number}-NN"
    if kind == "low_shot":
        return f"{number} label{'s' * (number != '1')}"
    if kind == "semi_supervised" and number.isdigit():
        return f"fine-tuned, {number} %"
    return _TRAINED.get(key, key.replace("_", " "))


MEASURES = tuple(  # on frozen features; a comparison has a column for each, a verdict is about the first
    Measure(key, measure_name(key)) for key in ("low_shot_1", "low_shot_5", "low_shot_10", "linear", "knn_1", "knn_20")
)
