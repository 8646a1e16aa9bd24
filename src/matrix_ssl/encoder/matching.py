"""Finds the encoder in the tensors of a checkpoint: its tensors, its architecture, and the tensors outside it.

An encoder begins with the convolution that takes images, a tensor (out, 1 or 3, h, w) with a name that is fixed by the
architecture. Anything before that name is the prefix of the encoder. Every tensor with that prefix must belong to the
architecture, in name and shape, and every other tensor must be known not to belong to an encoder.

Only BatchNorm's counters ``num_batches_tracked`` may be absent, and only all of them: files from before PyTorch 0.4.1
and conversions from JAX have none, and features do not depend on them. They are set to 0 and counted.
"""

import dataclasses
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from matrix_ssl.config import NetworkConfig
from matrix_ssl.encoder import Weights, architectures, names
from matrix_ssl.encoder.reading import Contents
from matrix_ssl.errors import OFFERED, CheckpointError, ConfigError
from matrix_ssl.runs.checkpoint import load_strictly

_COUNTER = "num_batches_tracked"
_LISTED = 3  # places that a text lists
Rename = Callable[[str], str]
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of pixels in [0, 1]
_TPU: Normalisation = ((127 / 255,) * 3, (128 / 255,) * 3)  # tensorflow/tpu, models/official/efficientnet/lite


@dataclass(frozen=True)
class Counts:
    """Counts of the tensors in a file that belong to an encoder, and of those that do not."""

    architecture: str
    tensors: int  # of the architecture
    counters: int  # how many of them the file lacks: batch counters, set to 0
    prefix: str  # of the encoder in the file
    beside: dict[str, list[str]]  # the places of all other tensors, by what they belong to, such as "head"
    types: list[str]  # number types that were converted to float32

    @property
    def text(self) -> str:
        """The counts in words."""
        text = f"{self.tensors - self.counters} of {self.tensors} tensors of {self.architecture} matched"
        text += f" under {self.prefix!r}" if self.prefix else ""
        text += f", {sum(map(len, self.beside.values()))} ignored"
        groups = [f"{len(places)} of the {what} ({_some(places)})" for what, places in self.beside.items()]
        text += f": {'; '.join(groups)}." if groups else "."
        if self.counters:
            text += f" {self.counters} counters {_COUNTER} are missing and set to 0; features do not depend on them."
        return text + (f" {', '.join(self.types)} numbers converted to float32." if self.types else "")

    def to_dict(self) -> dict[str, Any]:
        """The counts for JSON, with the number of tensors outside the encoder instead of their places."""
        return dataclasses.asdict(self) | {"beside": {what: len(places) for what, places in self.beside.items()}}


@dataclass(frozen=True)
class Match:
    """An encoder that matches its architecture tensor by tensor."""

    network: NetworkConfig
    image_size: int  # pixels
    tensors: dict[str, Tensor]  # under the names of this package
    counts: Counts
    normalisation: Normalisation | None  # of its images, if the layout of the file determines it


@dataclass(frozen=True)
class _Layout:
    """The name of the first convolution, and how all other names follow from torchvision's or timm's."""

    first: str
    rename: Rename = str  # the same name
    inputs: int = 3  # channels that the first convolution may take, besides 1, 3 and those of the images
    normalisation: Normalisation | None = None  # of the images, if the program with this layout uses its own


_LAYOUTS: tuple[_Layout, ...] = (
    _Layout("conv1.weight"),
    _Layout("patch_embed.proj.weight"),
    _Layout("conv_proj.weight"),
    _Layout("embedder.embedder.convolution.weight", names.huggingface),
    _Layout("0.weight", names.sequential),
    _Layout("_conv_stem.weight", names.efficientnet_lite0, normalisation=_TPU),
)


@dataclass(frozen=True)
class _Comparison:
    """A comparison of an architecture with the tensors under one prefix."""

    network: NetworkConfig
    outline: nn.Module
    theirs: dict[str, str]  # name in the architecture: name in the file
    missing: list[str]  # names in the architecture that are absent or have another shape in the file
    over: list[str]  # names in the file that the architecture does not have
    fits: bool  # nothing is missing, except all counters at once, and no name in ``over`` belongs to an encoder

    @property
    def faults(self) -> int:
        return len(self.missing) + sum(names.beside_an_encoder(name, inside=True) is None for name in self.over)


def find_encoder(
    contents: Contents, source: str, *, architecture: str | None, branch: Weights, image_size: int | None, channels: int
) -> Match:
    """The encoder of a checkpoint, which ``source`` names in messages; arguments as in ``opening.open_checkpoint``.

    Raises:
        CheckpointError: no encoder, several, or one that does not match completely; tensors that no rule explains.
        ConfigError: the file has a different architecture or image size from the one requested.
    """
    saved = contents.metadata.get("architecture")
    if saved and architecture not in (None, saved):
        raise ConfigError(f"{source} holds {saved}, not {architecture}; use {_named(source, saved)}.")
    requested = architecture or saved
    layouts = _LAYOUTS
    if requested:
        own, inputs = architectures.first_convolution(
            requested, contents.metadata, image_size=image_size, channels=channels
        )
        layouts = _Layout(own, inputs=inputs), *_LAYOUTS
    layout, prefixes = _prefixes(contents.tensors, layouts, source, requested, channels)
    prefix = _choose(prefixes, contents.tensors, branch, source)
    inside = _under(prefix, contents.tensors)
    architectures.refuse_lookalikes(prefix, inside, lightning=contents.lightning, source=source)
    first = inside[layout.first].shape
    named = architectures.describe(requested, first, contents.metadata) if requested else None
    size = architectures.choose_image_size(inside, contents.metadata, image_size, named=named, channels=channels)
    candidates = architectures.candidates(layout.first, first)

    def compare(name: str) -> _Comparison:
        network = architectures.describe(name, first, contents.metadata)
        rename = layout.rename if name in candidates else str
        return _compare(inside, network, architectures.outline(network, image_size=size, channels=channels), rename)

    best = _best(compare(name) for name in ([requested] if requested else candidates))
    if best is None:
        raise CheckpointError(f"{source} has an encoder of unknown architecture; name it with {_named(source)}.")
    if not best.fits:
        other = _best(compare(name) for name in candidates if name != requested) if requested else None
        if other is not None and other.fits:
            name = other.network.encoder
            raise ConfigError(f"{source} holds {name}, not {requested}; use {_named(source, name)}.")
        _explain(best, inside, source)
    others = [name for name in contents.tensors if not name.startswith(prefix)] + [prefix + name for name in best.over]
    tensors, types = _take(best, inside, source)
    beside = _group(others, [each for each in prefixes if each != prefix], source)
    architecture, total, absent = best.network.encoder, len(best.theirs), len(best.missing)
    counts = Counts(architecture, total, absent, prefix.rstrip("."), beside, types)
    return Match(best.network, size, tensors, counts, layout.normalisation)


def _prefixes(
    tensors: Mapping[str, Tensor], layouts: tuple[_Layout, ...], source: str, requested: str | None, channels: int
) -> tuple[_Layout, list[str]]:
    """The layout, and the prefix of each encoder in the file."""
    for layout in layouts:
        prefixes = [
            name.removesuffix(layout.first)
            for name, tensor in tensors.items()
            if f".{name}".endswith(f".{layout.first}")
            and tensor.ndim == 4
            and tensor.shape[1] in (1, 3, channels, layout.inputs)
        ]
        if prefixes:
            return layout, prefixes
    if foreign := names.foreign(tensors):
        raise CheckpointError(f"{source} {foreign}.")
    known = " or ".join(dict.fromkeys(layout.first for layout in layouts))
    which = f"{requested}, which was named, begins with {layouts[0].first}; save" if requested else (
        f"Name it with {_named(source)}, or save"
    )  # fmt: skip
    raise CheckpointError(
        f"{source} has no known encoder: none of its {len(tensors)} tensors ({', '.join(list(tensors)[:4])}, ...) "
        f"looks like a first convolution ({known}). {which} its state dict alone."
    )


def _choose(prefixes: list[str], tensors: Mapping[str, Tensor], branch: Weights, source: str) -> str:
    """The prefix of the encoder of a branch."""
    matching = [prefix for prefix in prefixes if names.is_teacher(prefix) == (branch == "teacher")]
    listed = ", ".join(repr(prefix.rstrip(".")) if prefix else "the whole file" for prefix in prefixes)
    if not matching:
        other = "student" if branch == "teacher" else "teacher"
        use = OFFERED.first(f"use --branch {other}", f"use --weights {other}", otherwise="save its state dict alone")
        raise CheckpointError(f"{source} has no {branch}, its encoder is {listed}; {use}.")
    first, *more = (_under(prefix, tensors) for prefix in matching)
    for again in more:  # some programs save one encoder under two names
        if not all(name in again and torch.equal(first[name], again[name]) for name in first):
            raise CheckpointError(f"{source} has several encoders, {listed}; save the state dict of one alone.")
    return matching[0]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _compare(inside: Mapping[str, Tensor], network: NetworkConfig, outline: nn.Module, rename: Rename) -> _Comparison:
    expected = outline.state_dict()
    theirs = {own: rename(own) for own in expected}
    missing = [own for own, name in theirs.items() if name not in inside or inside[name].shape != expected[own].shape]
    over = sorted(inside.keys() - theirs.values())
    counters = [own for own, name in theirs.items() if own.endswith(_COUNTER) and name not in inside]
    whole = not missing or (missing == counters and len(counters) == sum(own.endswith(_COUNTER) for own in expected))
    known = all(names.beside_an_encoder(name, inside=True) for name in over)
    return _Comparison(network, outline, theirs, missing, over, fits=whole and known)


def _best(compared: Iterable[_Comparison]) -> _Comparison | None:
    """The first that fits, or else the one with the fewest missing or left-over tensors."""
    best = None
    for each in compared:
        if each.fits:
            return each
        if best is None or each.faults < best.faults:
            best = each
    return best


def _explain(best: _Comparison, inside: Mapping[str, Tensor], source: str) -> None:
    """Raises the error that lists every name that is missing, left over or has a different shape."""
    ours = {name: own for own, name in best.theirs.items()}
    known = {name for name in best.over if names.beside_an_encoder(name, inside=True)}
    tensors = {ours.get(name, name): tensor for name, tensor in inside.items() if name not in known}
    load_strictly(best.outline, tensors, f"{source}, read as {best.network.encoder},")


def _take(best: _Comparison, inside: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in the encoder's data types, and the types that were converted to float32."""
    expected = best.outline.state_dict()
    tensors, types = {}, set()
    for own, name in best.theirs.items():
        if own in best.missing:
            tensors[own] = torch.zeros(expected[own].shape, dtype=expected[own].dtype)
            continue
        stored, dtype = inside[name], expected[own].dtype
        if stored.is_floating_point() != dtype.is_floating_point:
            raise CheckpointError(f"{source}: {name} holds numbers of type {stored.dtype}, not {dtype}.")
        if not stored.isfinite().all():
            raise CheckpointError(f"{source}: {name} has values that are not finite; its training has diverged.")
        if stored.dtype != dtype:
            types.add(str(stored.dtype).removeprefix("torch."))
        tensors[own] = stored.to(dtype)
    return tensors, sorted(types)


def _group(others: list[str], prefixes: list[str], source: str) -> dict[str, list[str]]:
    """The places of tensors outside an encoder, by what they belong to; ``prefixes`` are those of other encoders."""
    groups: dict[str, list[str]] = defaultdict(list)
    unknown = []
    for name in others:
        other = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if other is not None:
            groups["teacher" if names.is_teacher(other) else "other encoder"].append(other.rstrip("."))
        elif known := names.beside_an_encoder(name):
            groups[known[0]].append(known[1])
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{source} has {len(unknown)} tensors that no rule explains, such as {', '.join(sorted(unknown)[:4])}; "
            "save the state dict of the encoder alone and import that."
        )
    return dict(groups)


def _named(source: str, architecture: str = "") -> str:
    """The option that names an architecture, or the command that has it."""
    option = f"--architecture {architecture}".rstrip()
    return OFFERED.first(option, otherwise=f"matrix-ssl import {shlex.quote(source)} {option}")


def _some(places: list[str]) -> str:
    distinct = list(dict.fromkeys(places))
    return ", ".join(distinct[:_LISTED]) + (", ..." if len(distinct) > _LISTED else "")
