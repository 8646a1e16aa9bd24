"""Data settings that are measured when a run starts: channels, range of values, mean and standard deviation."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from matrix_ssl import distributed
from matrix_ssl.config import RunConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.kinds.array_source import ArraySource
from matrix_ssl.data.sources import Data, Splits
from matrix_ssl.data.statistics import Statistics, mean_and_deviation, value_range
from matrix_ssl.runs.folder import CONFIG, read_config

_MEASURED = ("value_range", "mean", "std")  # settings of the data; empty: measured


def with_statistics(
    config: RunConfig, source: Source, *, run: Path | None, say: Callable[[str], None]
) -> tuple[RunConfig, Source]:
    """A run with channels, range, mean and deviation measured where they are empty, and its images read accordingly.

    Args:
        config: with the digest of its images, as ``identify_data`` returns it.
        run: its folder; if that holds the same run, what was measured then is reused. None: the run is new.
        say: called with a sentence on what was measured.

    Raises:
        DataError: no image can be read.
    """
    data = config.data
    data = dataclasses.replace(data, channels=source.channels) if data.channels == -1 else data
    if run is not None and (run / CONFIG).exists():
        before = read_config(run).data
        if (before.digest, before.channels, before.pages) == (data.digest, data.channels, data.pages):
            values = {name: getattr(data, name) or getattr(before, name) for name in _MEASURED}
            data = dataclasses.replace(data, **values)
    if data.channels and not (data.value_range or data.white_level):
        with distributed.together():
            limits = value_range(source, workers=data.workers) if distributed.is_main() else None
        limits = distributed.broadcast_object(limits)
        if limits is not None:
            say(f"Measured: values from {limits[0]:g} to {limits[1]:g}, which become 0 and 1 (data.value_range).")
        data = dataclasses.replace(data, value_range=limits or (0.0, 255.0))
    source = source.with_reading(data.reading)
    if not data.mean:
        with distributed.together():
            measured = mean_and_deviation(source, workers=data.workers) if distributed.is_main() else None
        measured = distributed.broadcast_object(measured)
        assert measured is not None  # the main process has measured
        say(_measured(measured))
        data = dataclasses.replace(data, mean=measured.mean, std=measured.std)
    return dataclasses.replace(config, data=data), source


def keeping_channels(config: RunConfig, data: Data | None, *, chosen: Collection[str]) -> RunConfig:
    """Keeps the channels of an array that does not hold 8-bit colour images, with mean and deviation to be measured.

    Args:
        chosen: dotted keys of settings that are not changed.
    """
    source = data.train() if isinstance(data, Splits) else None
    if not isinstance(source, ArraySource) or config.data.channels:
        return config
    own = {name: getattr(config.data, name) for name in ("mean", "std") if f"data.{name}" in chosen}
    values: dict[str, Any] = {"channels": source.stored_channels, "mean": (), "std": ()} | own
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **values))


def _measured(statistics: Statistics) -> str:
    """A sentence on what was measured."""
    mean, std = (", ".join(f"{each:.3g}" for each in values) for values in (statistics.mean, statistics.std))
    flat = ", ".join(str(1 + channel) for channel in statistics.constant)
    warning = f" Warning: without differences between pixels: channel {flat}." if flat else ""
    return f"Measured on {statistics.images} images: mean {mean}; deviation {std} (data.mean, data.std).{warning}"
