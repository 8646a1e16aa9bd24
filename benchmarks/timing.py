"""CPU seconds of functions that take turns, so that the noise of a machine meets all of them alike."""

import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def take_turns(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """CPU seconds of this process for every variant in every round; a first round that warms up is not counted.

    The order is drawn anew for every round: what runs after a call that gave much memory back pays to get it again.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-1 if warm_up else 0, rounds):
        for name in random.Random(turn).sample(list(variants), len(variants)):
            started = time.process_time()
            variants[name]()
            if turn >= 0:
                seconds[name].append(time.process_time() - started)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    names = ("least", "lower_quartile", "median", "upper_quartile", "most")
    return dict(zip(names, np.percentile(values, (0, 25, 50, 75, 100)).tolist(), strict=True))
