"""The strip of views: a few images from the first step, each with the first two views of it that the encoder saw."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config import RunConfig, ViewConfig
from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.report.formats import common_folder
from matrix_ssl.report.run.gallery import image_uri
from matrix_ssl.runs.folder import VIEWS, identity
from matrix_ssl.runs.terminal import printable

_CHANGES = {  # what the strength or probability of an augmentation switches on
    "flip": "mirrored", "quarter_turns": "turned by right angles", "rotation": "rotated", "zoom": "zoomed",
    "shear": "sheared", "translation": "shifted", "elastic": "bent",
    "jitter": "changed in brightness, contrast or colour",
    "channel_jitter": "changed channel by channel", "grayscale": "made grey", "blur": "blurred",
    "solarize": "solarised", "gamma": "changed in gamma", "noise": "made noisy",
}  # fmt: skip
_MOST_IMAGES, _MOST_PIXELS = 100, 1 << 20  # of the strip, and numbers of one of its images
_COLOUR_ONLY = ("grayscale", "solarize")


class Pair(NamedTuple):
    """An image and its views, as data URIs with their text alternatives."""

    name: str
    images: list[tuple[str, str]]


class Strip(NamedTuple):
    """The pairs, and how the views are made."""

    pairs: list[Pair]
    caption: str


def strip(run: Path, config: RunConfig) -> Strip | None:
    """The contents of a run's ``views.npz``; None if it is missing, damaged or from a different run."""
    path = run / VIEWS
    try:
        arrays = read_arrays(path) if path.is_file() else {}
        if not arrays or str(arrays["run"]) != identity(run):
            return None
        if arrays["where"].ndim != 1 or len(arrays["where"]) > _MOST_IMAGES:
            return None
        places = list(map(str, arrays["where"].tolist()))
        pairs = [_pair(arrays, row, where[len(common_folder(places)) :]) for row, where in enumerate(places)]
    except (OSError, ValueError, KeyError):
        return None
    return Strip(pairs, _caption(config)) if pairs else None


def _pair(arrays: dict[str, NDArray[Any]], row: int, where: str) -> Pair:
    name = printable(where)
    numbers = [number for number in (1, 2) if f"view_{row}_{number}" in arrays]
    images = [(image_uri(_pixels(arrays[f"image_{row}"])), f"the image {name}")]
    images += [(image_uri(_pixels(arrays[f"view_{row}_{n}"])), f"view {n} of {name}") for n in numbers]
    return Pair(name, images)


def _pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not 0 < image.size <= _MOST_PIXELS:
        raise ValueError(f"An image is {image.dtype} of shape {image.shape}.")
    return image


def _caption(config: RunConfig) -> str:
    groups = [group for group in config.views for _ in range(group.count)]
    colours = len(config.data.mean) == 3
    made = [describe(view, colours=colours) for view in groups[:2]]
    if len(groups) == 1:
        return f"Images of the first step, each with its view: {made[0]}."
    text = "Images of the first step, each with two of its views, whose outputs are to agree. "
    text += f"Each is {made[0]}." if len(set(made)) == 1 else f"The first is {made[0]}; the second {made[1]}."
    if len(groups) > 2:
        text += f" There are {len(groups)} views of every image, these are the first two."
    return f"{text} What differs between the views of an image, the encoder learns to ignore."


def describe(view: ViewConfig, *, colours: bool) -> str:
    """How a view is made, in words; ``colours``: whether images have three channels, as some augmentations require."""
    named = [(words, getattr(view, name)) for name, words in _CHANGES.items() if colours or name not in _COLOUR_ONLY]
    low, high = (f"{100 * part:.3g}" for part in view.crop_scale)
    crop = "the whole image" if view.crop_scale == (1.0, 1.0) else f"a crop of {low} to {high}% of the image"
    always = [words for words, value in named if value]
    return f"{crop}, at random {_listed(always)}" if always else crop


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
