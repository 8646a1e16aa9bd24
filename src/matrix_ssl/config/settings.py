"""The complete description of a run, as frozen dataclasses that become ``config.json`` and come back unchanged.

A recipe builds a ``RunConfig``; ``--set key=value`` changes single values by their dotted path. A key that does not
exist or a value of the wrong type is an error that says what was meant. Settings of a method live in its constructor
(``method.ridge`` is the keyword ``ridge`` of the method's class) and are checked against it by ``matrix_ssl.methods``.
"""

import dataclasses
import math
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from matrix_ssl.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they become tensors."""

    source: str = ""  # a folder, a packed .npz file, or the name of a set; empty: must be given by --data
    images: int = 0  # how many there are: filled in when a run starts
    digest: str = (
        ""  # of their content, ``Source.digest``: filled in when a run starts; empty in runs of older versions
    )
    subset: int = 0  # use only this many images, a random choice fixed by the seed; 0: all
    image_size: int = 224  # side of the square views, in pixels
    mean: tuple[float, ...] = IMAGENET_MEAN  # per channel, of pixels in [0, 1]
    std: tuple[float, ...] = IMAGENET_STD
    crop_fraction: float = 0.875  # evaluation: the central part of the image that is kept
    workers: int = -1  # processes that decode files; -1: one for each core of this process, 8 at most


@dataclass(frozen=True)
class ViewConfig:
    """Random changes that make one view; every probability and strength of zero switches its change off."""

    crop_scale: tuple[float, float] = (1.0, 1.0)  # area of the crop over the area of the image
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of the crop
    flip: float = 0.0  # probability of a left-right flip
    jitter: float = 0.0  # probability of the colour jitter
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0  # probability
    blur: float = 0.0  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the view
    solarize: float = 0.0  # probability of inverting every pixel above one half
    rotation: float = 0.0  # largest angle, degrees
    zoom: float = 0.0  # largest relative change of size
    shear: float = 0.0  # largest slope
    translation: float = 0.0  # largest shift, as a part of the side
    elastic: float = 0.0  # standard deviation of the smooth displacement, pixels
    gamma: float = 0.0  # largest |log gamma|
    noise: float = 0.0  # standard deviation of added Gaussian noise, pixels in [0, 1]


@dataclass(frozen=True)
class NetworkConfig:
    """The encoder: what is kept after pre-training."""

    encoder: str = "resnet18"  # tiny_resnet, a torchvision architecture, or timm/NAME
    stem: Literal["auto", "standard", "small"] = "auto"  # small: 3x3 convolution, no max-pool; auto: small up to 64 px
    width: int = 32  # channels of the first stage; tiny_resnet only


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule: linear warm-up, then cosine to zero."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    learning_rate: float = 0.5  # for a batch of 256; scaled linearly with the batch
    momentum: float = 0.9  # sgd and lars
    weight_decay: float = 1e-5
    warmup_epochs: float = 10.0


@dataclass(frozen=True)
class MethodConfig:
    """A method's name and the keyword arguments of its class."""

    name: str = "matrix_ssl"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes."""

    recipe: str = "default"
    data: DataConfig = field(default_factory=DataConfig)
    view1: ViewConfig = field(default_factory=ViewConfig)
    view2: ViewConfig = field(default_factory=ViewConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 100
    batch_size: int = 256  # over all processes
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"  # auto: bfloat16 on CUDA that has it
    deterministic: bool = False  # on CUDA: only deterministic kernels, slower
    log_every: int = 10  # steps between two lines of metrics.jsonl
    checkpoint_every: int = 0  # steps between two checkpoints; 0: at the end of an epoch, at most once a minute
    max_bad_steps: int = 3  # steps in a row with a loss or gradient that is not finite before the run stops


# settings that do not decide what a run computes: a moved dataset is still the same run, its digest says that it is
MAY_CHANGE = ("data.source", "data.workers", "log_every", "checkpoint_every", "max_bad_steps")

# smallest and largest value of settings, by the end of their dotted path
_RANGES: dict[str, tuple[float, float]] = {
    "data.subset": (0, math.inf),
    "data.image_size": (1, math.inf),
    "data.crop_fraction": (0.01, 1),
    "data.workers": (-1, math.inf),
    "network.width": (8, math.inf),  # PyTorch 2.14 crashes in the backward of narrower 1x1 convolutions, channels last
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.warmup_epochs": (0, math.inf),
    "epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "seed": (0, 2**63 - 1),
    "log_every": (1, math.inf),
    "checkpoint_every": (0, math.inf),
    "max_bad_steps": (1, math.inf),
}
_PROBABILITIES = ("flip", "jitter", "grayscale", "blur", "solarize")
_INTERVALS = {"crop_scale": (0.0, 1.0), "crop_ratio": (0.0, math.inf), "blur_sigma": (0.0, math.inf)}


def check_ranges(config: RunConfig) -> None:
    """Raises ConfigError for a number outside the range in which it means something."""
    values = dict(flatten(to_dict(config)))
    ranges = _RANGES | {f"{view}.{name}": (0, 1) for view in ("view1", "view2") for name in _PROBABILITIES}
    for key, (low, high) in ranges.items():
        if not low <= values[key] <= high:
            upper = f" and at most {high:g}" if high < 2**53 else ""
            raise ConfigError(f"{key}={values[key]}: expected at least {low:g}{upper}.")
    for view in ("view1", "view2"):
        for name, (low, high) in _INTERVALS.items():
            first, last = values[f"{view}.{name}"]
            if not low < first <= last <= high:
                upper = f" and at most {high:g}" if high < math.inf else ""
                raise ConfigError(f"{view}.{name}={first},{last}: expected two rising numbers above {low:g}{upper}.")
    mean, std = config.data.mean, config.data.std
    if len(mean) not in (1, 3) or len(std) != len(mean) or min(std) <= 0:
        raise ConfigError(f"data.mean={mean}, data.std={std}: expected 1 or 3 numbers each, and std above zero.")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Builds a configuration from nested plain values.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type.
    """
    return _build(RunConfig, values, "")


def override(config: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """Applies ``key=value`` assignments with dotted keys, for example ``optimizer.learning_rate=0.1``.

    Raises:
        ConfigError: an assignment has no ``=``, its key is unknown or its value has the wrong type.
    """
    return override_dataclass(config, assignments)


def override_dataclass(settings: Settings, assignments: Iterable[str]) -> Settings:
    """``override`` for any dataclass of settings, with groups or without.

    Raises:
        ConfigError: as ``override``.
    """
    values = dataclasses.asdict(settings)  # type: ignore[call-overload]
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator or not key:
            raise ConfigError(f"--set {assignment!r}: write key=value, for example epochs=50.")
        _assign(values, key, text.strip())
    return _build(type(settings), values, "")


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines ``key: old -> new`` for every value that would make it another run."""
    return changes(to_dict(old), to_dict(new), but=MAY_CHANGE)


def changes(old: Mapping[str, Any], new: Mapping[str, Any], *, but: Collection[str]) -> list[str]:
    """Lines ``key: old -> new`` for the values of nested mappings that differ, except where ``but`` names the key.

    Tuples equal lists, so that what comes from a JSON file compares with what goes into it. A digest that the old one
    lacks, because an earlier version wrote it, agrees with any.
    """
    before, after = (
        {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(values)}
        for values in (old, new)
    )
    unknown = {key for key in after if key.endswith("digest") and not before.get(key)}
    keys = [key for key in sorted(before.keys() | after.keys()) if key not in {*but, *unknown}]
    different = [key for key in keys if before.get(key) != after.get(key)]
    notes = {key: " (the data are different)" for key in different if key.endswith("digest")}
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}{notes.get(key, '')}" for key in different]


def check_type(value: Any, expected: Any, key: str) -> Any:
    """Returns ``value`` as ``expected`` (int, float, bool, str, Literal, tuple, or a union); text is parsed.

    Raises:
        ConfigError: it cannot be read as that type; the message names the key, the value and the type.
    """
    origin = get_origin(expected)
    if expected is Any:
        return value
    if origin is Literal:
        return _check_literal(value, get_args(expected), key)
    if origin in (Union, types.UnionType):
        for member in get_args(expected):
            try:
                return None if member is type(None) and value in (None, "none") else check_type(value, member, key)
            except ConfigError:
                continue
        raise ConfigError(f"{key}={value!r}: expected {expected}.")
    if origin is tuple:
        return _check_tuple(value, get_args(expected), key)
    if expected is bool:
        if value in (True, False, "true", "false", "True", "False"):
            return value in (True, "true", "True")
        raise ConfigError(f"{key}={value!r}: expected true or false.")
    if expected is str and isinstance(value, str):
        return value
    if expected in (int, float) and not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            number = expected(value)
            if math.isfinite(number) and (isinstance(value, str) or number == value):
                return number
        except (ValueError, OverflowError):
            pass  # the message below says what was expected
    names = {int: "a whole number", float: "a finite number", str: "text"}
    raise ConfigError(f"{key}={value!r}: expected {names.get(expected, expected)}.")


def _check_literal(value: Any, choices: tuple[Any, ...], key: str) -> Any:
    names = {str(choice): choice for choice in choices}
    if str(value) in names:
        return names[str(value)]
    raise ConfigError(f"{key}={value!r}: expected one of {', '.join(names)}.{did_you_mean(str(value), names)}")


def _check_tuple(value: Any, members: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    between = ";" if get_origin(members[0]) is tuple else ","  # pairs: 1,2;3,4
    items = value.strip("()[] ").split(between) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise ConfigError(f"{key}={value!r}: expected numbers separated by commas.")
    if members[-1] is Ellipsis:
        members = members[:1] * len(items)
    if len(items) != len(members):
        raise ConfigError(f"{key}={value!r}: expected {len(members)} values separated by commas, got {len(items)}.")
    return tuple(check_type(item, member, key) for item, member in zip(items, members, strict=True))


def _build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}={values!r}: expected a group of settings {sorted(hints)}.")
    arguments = {}
    for name, value in values.items():
        key = prefix + name
        if name not in hints:
            raise ConfigError(f"unknown setting {key!r}.{did_you_mean(key, [prefix + h for h in hints])}")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            arguments[name] = _build(hint, value, key + ".")  # type: ignore[arg-type]
        elif get_origin(hint) is Mapping:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{key}={value!r}: expected a group of settings.")
            arguments[name] = dict(value)
        else:
            arguments[name] = check_type(value, hint, key)
    return cls(**arguments)


def _assign(values: dict[str, Any], key: str, text: str) -> None:
    *groups, leaf = key.split(".")
    if groups == ["method"] and "method" in values and leaf not in ("name", "options"):
        values["method"]["options"] = {**values["method"]["options"], leaf: text}
        return
    known = [k for k, _ in flatten(values)]
    if key not in known:
        raise ConfigError(f"--set {key}={text}: unknown setting {key!r}.{did_you_mean(key, known)}")
    target = values
    for group in groups:
        target = target[group]
    target[leaf] = text


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as pairs of a dotted key and a plain value."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs
