"""The complete description of a run, as frozen dataclasses that become ``config.json`` and come back unchanged.

Types and ranges stand beside the fields and are checked whenever an instance is built. Settings of a method are keyword
arguments of its class (``method.ridge`` is ``ridge``), and ``matrix_ssl.methods`` checks them against it.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Predicate
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from matrix_ssl.config.assignments import build, changes, flatten
from matrix_ssl.config.reading import MOST_CHANNELS, CropMode, Pages, Reading
from matrix_ssl.config.validation import Fraction, Seed, settings
from matrix_ssl.errors import ConfigError

MOST_SIDE = 4096  # pixels of a view
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# settings that do not affect what a run computes; data or weights may move, since their digests identify them
MAY_CHANGE = (
    "data.source", "data.workers", "data.max_unreadable", "start.reference", "start.origin", "log_every",
    "checkpoint_every", "keep_checkpoints", "max_bad_steps",
)  # fmt: skip

_MOST_VIEWS = 1000  # per image
# names from earlier versions, which old run folders still contain: counts in JSON files, and recipes
RENAMED_COUNTS = {
    "pictures": "images", "pictures_without_instances": "images_without_instances",
    "training_pictures": "training_images",
}  # fmt: skip
RENAMED_RECIPES = {"pictures": "images", "pictures_small": "images_small"}


_Increasing = Annotated[tuple[float, float], Predicate(lambda ends: 0 < ends[0] <= ends[1])]
Interval = Annotated[_Increasing, "two increasing numbers above 0"]
Part = Annotated[_Increasing, Predicate(lambda ends: ends[1] <= 1), "two increasing numbers above 0 and at most 1"]
Locations = str | tuple[str, ...]  # a dataset, or several that are used as one
Precision = Literal["auto", "float32", "bfloat16", "float64"]


@settings
class DataConfig:
    """Where the images come from and how they become tensors."""

    # a folder, a packed .npz file or the name of a dataset, or several; memory:WHAT: in the memory of a program; empty:
    # --data is required
    source: Locations = ""
    images: int = 0  # their number: filled in when a run starts
    digest: str = ""  # of their content, ``Source.digest``: filled in when a run starts; empty in older runs
    subset: NonNegativeInt = 0  # use only this many images, a random choice fixed by the seed; 0: all
    image_size: Annotated[int, Ge(1), Le(MOST_SIDE)] = 224  # side of the square views, in pixels
    mean: tuple[float, ...] = IMAGENET_MEAN  # per channel, of pixels in [0, 1]; empty: measured when a run starts
    std: tuple[float, ...] = IMAGENET_STD  # empty: measured
    crop_fraction: Annotated[float, Ge(0.01), Le(1)] = 0.875  # evaluation: the central part of the image that is kept
    crop_mode: CropMode = "centre"  # of that part: a square, or one of the image's shape, squeezed into a square
    max_unreadable: Fraction = 0.01  # part of the images that may be unreadable before a run ends; ten always may
    white_level: NonNegativeInt = 0  # level of white in images of more than 8 bits, such as 4095; 0: their format's
    # 1 to 16: channels of an image, which keeps all of its bits; 0: three colours of 8 bits, whatever the file has; -1:
    # as many as the first image has, filled in when a run starts
    channels: Annotated[int, Ge(-1), Le(MOST_CHANNELS)] = 0
    value_range: tuple[float, ...] = ()  # with channels: the values that become 0 and 1; empty: measured
    pages: Pages = "first"  # of files with several: the first is the image, each one is, or they are its channels
    workers: Annotated[int, Ge(-1)] = -1  # processes that decode files; -1: one for each core of this process, up to 32
    # what makes random views: torch, in floating point, or opencv, in 8 bits, on a CPU and, of files, in the workers
    view_backend: Literal["torch", "opencv"] = "torch"

    def __post_init__(self) -> None:
        """Raises ConfigError unless mean and std fit each other and the channels, and the range is increasing."""
        count = len(self.mean)
        if count > MOST_CHANNELS or len(self.std) != count or min(self.std, default=1.0) <= 0:
            pair = f"data.mean={self.mean}, data.std={self.std}"
            raise ConfigError(f"{pair}: expected 1 to {MOST_CHANNELS} numbers each, or none, and std above 0.")
        if self.channels > 0 and count not in (0, self.channels):
            raise ConfigError(
                f"data.channels={self.channels}, but data.mean has {count} numbers: expected one per channel."
            )
        if self.value_range and not (len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]):
            raise ConfigError(f"data.value_range={self.value_range}: expected two increasing numbers.")
        if self.pages == "channels" and not self.channels:
            raise ConfigError("data.pages=channels needs the number of channels: add --set data.channels=-1.")

    @property
    def reading(self) -> Reading:
        """How files become pixels."""
        low_high = (self.value_range[0], self.value_range[1]) if self.value_range else None
        return Reading(self.channels, self.white_level, low_high, self.pages)


@settings
class ViewConfig:
    """Random augmentations that make some of the views; a probability or strength of zero switches one off."""

    count: PositiveInt = 1  # views of every image that are made in this way
    image_size: Annotated[int, Ge(0), Le(MOST_SIDE)] = 0  # side of the square views, in pixels; 0: data.image_size
    crop_scale: Part = (1.0, 1.0)  # area of the crop over the area of the image
    crop_ratio: Interval = (3 / 4, 4 / 3)  # width over height of the crop
    flip: Fraction = 0.0  # probability of a left-right flip
    quarter_turns: Fraction = 0.0  # probability of a turn by one, two or three right angles
    jitter: Fraction = 0.0  # probability of the colour jitter
    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0  # three channels only, as hue, grayscale and solarize
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.0  # parts of the circle; half of one reaches every hue
    grayscale: Fraction = 0.0  # probability
    channel_jitter: Fraction = 0.0  # probability of a change of brightness and contrast of every channel on its own
    channel_brightness: NonNegativeFloat = 0.0
    channel_contrast: NonNegativeFloat = 0.0
    blur: Fraction = 0.0  # probability
    blur_sigma: Interval = (0.1, 2.0)  # pixels of the view
    solarize: Fraction = 0.0  # probability of inverting every pixel above one half
    rotation: NonNegativeFloat = 0.0  # largest angle, degrees
    zoom: NonNegativeFloat = 0.0  # largest relative change of size
    shear: NonNegativeFloat = 0.0  # largest slope
    translation: NonNegativeFloat = 0.0  # largest shift, as a part of the side
    elastic: NonNegativeFloat = 0.0  # standard deviation of the smooth displacement, pixels
    gamma: NonNegativeFloat = 0.0  # largest |log gamma|
    noise: NonNegativeFloat = 0.0  # standard deviation of added Gaussian noise, pixels in [0, 1]


@settings
class NetworkConfig:
    """The encoder: what is kept after pre-training."""

    encoder: str = "resnet18"  # tiny_resnet, a torchvision architecture, timm/NAME, or hf:NAME (with its weights only)
    stem: Literal["auto", "standard", "small"] = "auto"  # small: 3x3 convolution, no max-pool; auto: small up to 64 px
    width: Annotated[int, Ge(8), Le(4096)] = 32  # channels of the first stage, of tiny_resnet only
    # side of the patches in pixels, of vision transformers of timm only; 0: that of the architecture
    patch_size: NonNegativeInt = 0
    configuration: str = ""  # of hf:NAME: the config.json of its model as JSON, filled in from its weights


@settings
class OptimizerConfig:
    """Optimizer and learning-rate schedule: linear warm-up, then cosine to zero."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    learning_rate: NonNegativeFloat = 0.5  # for a batch of 256; scaled linearly with the batch
    momentum: Fraction = 0.9  # sgd and lars
    weight_decay: NonNegativeFloat = 1e-5
    warmup_epochs: NonNegativeFloat = 10.0  # at most half of all
    # factor of the rate from each depth of the encoder to the one below, ``training.layers``; 1: one rate for all
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    frozen_epochs: NonNegativeFloat = 0.0  # at the start, in which the heads learn and the encoder's weights stay
    # BatchNorm of the encoder normalises by its running statistics in training, too, and those stay as they are
    frozen_statistics: bool = False


@settings
class StartConfig:
    """The weights that a run starts from, filled in except for the reference; empty: all networks are initialised."""

    reference: str = ""  # as for ``encoder.open_encoder``
    origin: str = ""  # of the weights, in words, with the number of their tensors
    sha256: str = ""  # of their file
    tensors: NonNegativeInt = 0  # of the encoder
    heads: NonNegativeInt = 0  # tensors of the heads that come from there as well


@settings
class MethodConfig:
    """A method's name and the keyword arguments of its class."""

    name: str = "matrix_ssl"
    options: Mapping[str, Any] = field(default_factory=dict)


@settings
class RunConfig:
    """Everything that decides what a run computes."""

    recipe: str = "default"
    data: DataConfig = field(default_factory=DataConfig)
    views: tuple[ViewConfig, ...] = (ViewConfig(), ViewConfig())
    network: NetworkConfig = field(default_factory=NetworkConfig)
    start: StartConfig = field(default_factory=StartConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: PositiveInt = 100
    batch_size: Annotated[int, Ge(2)] = 256  # over all processes
    seed: Seed = 0
    # auto: bfloat16 where the device multiplies it itself, else float32; which of them is filled in when a run starts
    precision: Precision = "auto"
    batch_parts: PositiveInt = 1  # in which the encoder computes a batch, one after the other: the loss sees all of it
    recompute_blocks: bool = False  # activations in blocks of the encoder are computed again instead of kept
    compile: bool = False  # encoder and projector by torch.compile: faster steps after a slow start
    deterministic: bool = False  # on CUDA: only deterministic kernels, slower
    log_every: PositiveInt = 10  # steps between two lines of metrics.jsonl
    checkpoint_every: NonNegativeInt = 0  # steps between checkpoints; 0: at the end of an epoch, at most once a minute
    # how many checkpoints, spread evenly over the training, stay beside the newest two, to be measured
    keep_checkpoints: Annotated[int, Ge(0), Le(100)] = 0
    max_bad_steps: PositiveInt = 3  # steps in a row with a loss or gradient that is not finite before the run stops

    def __post_init__(self) -> None:
        """Raises ConfigError if there are no views or too many; ``training.setup`` checks how many a method needs."""
        if not self.views:
            raise ConfigError("views: an image needs one view or more. Use --set views.0.count=2.")
        if (count := sum(view.count for view in self.views)) > _MOST_VIEWS:
            raise ConfigError(f"views: {count} views of an image are more than {_MOST_VIEWS}: lower views.0.count.")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """A configuration from nested plain values, including an earlier version's; raises the errors of ``build``."""
    data = values.get("data") if isinstance(values, Mapping) else None
    values = {**values, "data": current_names(data)} if isinstance(data, dict) else values
    return build(RunConfig, current_names(values) if isinstance(values, dict) else values)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines ``key: old -> new`` for every difference that would make it a different run."""
    return changes(to_dict(_with_current_recipe(old)), to_dict(new), but=MAY_CHANGE)


def completed(values: Any) -> Any:
    """A stored configuration as it would be stored today: settings that an earlier version lacked have their defaults.

    Values that are no configuration are returned as they are.
    """
    try:
        return to_dict(_with_current_recipe(from_dict(values)))
    except ConfigError:
        return values


def _with_current_recipe(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, recipe=RENAMED_RECIPES.get(config.recipe, config.recipe))


def identifying(config: RunConfig) -> dict[str, Any]:
    """The settings that identify a run: those that are not at their defaults, by dotted key."""
    defaults = _defaults()
    return {
        key: value for key, value in _plain(_with_current_recipe(config)).items()
        if key not in MAY_CHANGE and (key not in defaults or defaults[key] != value)
    }  # fmt: skip


def _plain(config: RunConfig) -> dict[str, Any]:
    """The settings by dotted key, as they come back from JSON."""
    return dict(flatten(json.loads(json.dumps(to_dict(config)))))


@functools.cache
def _defaults() -> dict[str, Any]:
    return _plain(RunConfig())


def current_names(values: dict[str, Any]) -> dict[str, Any]:
    """One object of a run folder's JSON with current keys; a class of images may share its name with an old count."""
    values = {RENAMED_COUNTS.get(key, key) if isinstance(value, int) else key: value for key, value in values.items()}
    old = [name for name in ("view1", "view2") if isinstance(values.get(name), dict)]
    if old and "views" not in values:  # a run of exactly two views
        values["views"] = [{"count": 1, "image_size": 0, **values.pop(name)} for name in old]
    return values
