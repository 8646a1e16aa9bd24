"""Finds the encoder in the tensors of a checkpoint: which of them it is, which architecture, and what is beside it.

An encoder begins with the convolution that takes images, a tensor (out, 1 or 3, h, w) with a name that its
architecture fixes. Whatever stands before that name is the prefix of the encoder. Every tensor with that prefix must
belong to the architecture, in name and shape, and every other tensor must be known to belong to no encoder.

BatchNorm's counters ``num_batches_tracked`` alone may be absent, all of them: files from before PyTorch 0.4.1 and
conversions from JAX have none, and features do not depend on them. They are set to 0 and the text says so.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from matrix_ssl.config import NetworkConfig
from matrix_ssl.encoder import Weights, architectures, names
from matrix_ssl.encoder.reading import Contents
from matrix_ssl.errors import CheckpointError, ConfigError
from matrix_ssl.runs.checkpoint import load_strictly

_COUNTER = "num_batches_tracked"
_SHOWN = 3  # places that a text names
Rename = Callable[[str], str]


@dataclass(frozen=True)
class Found:
    """An encoder that matches its architecture tensor by tensor."""

    network: NetworkConfig
    image_size: int  # pixels
    tensors: dict[str, Tensor]  # under the names of this package
    text: str  # what was matched, and what was left aside


@dataclass(frozen=True)
class _Layout:
    """The name of the first convolution, and how every other name follows from torchvision's or timm's."""

    first: str
    rename: Rename = names.same


_LAYOUTS = (
    _Layout("conv1.weight"),
    _Layout("patch_embed.proj.weight"),
    _Layout("conv_proj.weight"),
    _Layout("embedder.embedder.convolution.weight", names.huggingface),
    _Layout("0.weight", names.sequential),
)


@dataclass(frozen=True)
class _Comparison:
    """An architecture beside the tensors under one prefix."""

    network: NetworkConfig
    outline: nn.Module
    theirs: dict[str, str]  # name in the architecture: name in the file
    missing: list[str]  # names in the architecture, absent or of another shape in the file
    over: list[str]  # names in the file that the architecture does not have
    fits: bool  # nothing is missing but all counters, and all that is over is known to belong to no encoder

    @property
    def faults(self) -> int:
        return len(self.missing) + sum(names.beside_an_encoder(name) is None for name in self.over)


def find_encoder(
    contents: Contents, source: str, *, architecture: str | None, branch: Weights, image_size: int | None, channels: int
) -> Found:
    """The encoder of a checkpoint.

    Args:
        contents: what the file holds.
        source: what messages call it.
        architecture: as ``network.encoder`` of a configuration; None: found from names and shapes.
        branch: of two encoders, the one that was trained or the one that followed it.
        image_size: side of the images, pixels; None: what the encoder was made for, else 224.
        channels: of the images, 1 or 3.

    Raises:
        CheckpointError: no encoder, several, or one that does not match completely; or tensors that no rule explains.
        ConfigError: the architecture or the size of the images is another one than asked for.
    """
    saved = contents.metadata.get("architecture")
    if saved and architecture not in (None, saved):
        raise ConfigError(f"{source} holds {saved}, not {architecture}: use --architecture {saved}.")
    given = architecture or saved
    layout, prefixes = _prefixes(contents.tensors, _layouts(given, channels), source)
    prefix = _choose(prefixes, contents.tensors, branch, source)
    inside = _under(prefix, contents.tensors)
    architectures.refuse_lookalikes(prefix, inside, lightning=contents.lightning, source=source)
    size = architectures.choose_image_size(inside, contents.metadata, image_size)
    first = inside[layout.first].shape

    def compare(name: str) -> _Comparison:
        network = architectures.describe(name, first, contents.metadata)
        rename = layout.rename if architectures.is_resnet(name) else names.same
        return _compare(inside, network, architectures.outline(network, image_size=size, channels=channels), rename)

    others = architectures.candidates(layout.first, first)
    best = _best(compare(name) for name in ([given] if given else others))
    if best is None:
        raise CheckpointError(f"{source} has an encoder of an unknown architecture: name it with --architecture.")
    if not best.fits:
        other = _best(compare(name) for name in others if name != given) if given else None
        if other is not None and other.fits:
            name = other.network.encoder
            raise ConfigError(f"{source} holds {name}, not {given}: use --architecture {name}.")
        _explain(best, inside, source)
    aside = [name for name in contents.tensors if not name.startswith(prefix)] + [prefix + name for name in best.over]
    tensors, remarks = _take(best, inside, source)
    text = f"{len(best.theirs) - len(best.missing)} of {len(best.theirs)} tensors of {best.network.encoder} matched"
    text += f" under {prefix.rstrip('.')!r}" if prefix else ""
    text += ", " + _describe_rest(aside, prefix, prefixes, source)
    return Found(best.network, size, tensors, ". ".join([text, *remarks]) + ".")


def _layouts(given: str | None, channels: int) -> tuple[_Layout, ...]:
    if given is None:
        return _LAYOUTS
    return (_Layout(architectures.first_convolution(given, channels=channels)), *_LAYOUTS)


def _prefixes(tensors: Mapping[str, Tensor], layouts: tuple[_Layout, ...], source: str) -> tuple[_Layout, list[str]]:
    """The layout, and what stands before the names of each encoder of the file."""
    for layout in layouts:
        found = [
            name.removesuffix(layout.first)
            for name, tensor in tensors.items()
            if f".{name}".endswith(f".{layout.first}") and tensor.ndim == 4 and tensor.shape[1] in (1, 3)
        ]
        if found:
            return layout, found
    looked = ", ".join(dict.fromkeys(layout.first for layout in layouts))
    some = ", ".join(list(tensors)[:4])
    raise CheckpointError(
        f"{source} has no encoder that is known here: none of its {len(tensors)} tensors ({some}, ...) is the first "
        f"convolution {looked} of an image. Give the architecture, --architecture NAME, or save its state dict alone."
    )


def _choose(prefixes: list[str], tensors: Mapping[str, Tensor], branch: Weights, source: str) -> str:
    """The prefix of the encoder that was asked for."""
    wanted = [prefix for prefix in prefixes if names.is_teacher(prefix) == (branch == "teacher")]
    listed = ", ".join(repr(prefix.rstrip(".")) if prefix else "the whole file" for prefix in prefixes)
    if not wanted:
        other = "student" if branch == "teacher" else "teacher"
        raise CheckpointError(f"{source} has no {branch}, its encoder is {listed}: use --branch {other}.")
    first, *more = (_under(prefix, tensors) for prefix in wanted)
    for again in more:  # some programs save one encoder under two names
        if not all(name in again and torch.equal(first[name], again[name]) for name in first):
            raise CheckpointError(f"{source} has several encoders, {listed}: save the state dict of one alone.")
    return wanted[0]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _compare(inside: Mapping[str, Tensor], network: NetworkConfig, outline: nn.Module, rename: Rename) -> _Comparison:
    expected = outline.state_dict()
    theirs = {own: rename(own) for own in expected}
    missing = [own for own, name in theirs.items() if name not in inside or inside[name].shape != expected[own].shape]
    over = sorted(inside.keys() - theirs.values())
    counters = [own for own, name in theirs.items() if own.endswith(_COUNTER) and name not in inside]
    whole = not missing or (missing == counters and len(counters) == sum(own.endswith(_COUNTER) for own in expected))
    known = all(names.beside_an_encoder(name) for name in over)
    return _Comparison(network, outline, theirs, missing, over, fits=whole and known)


def _best(compared: Iterable[_Comparison]) -> _Comparison | None:
    """The first that fits, or the one with the fewest tensors that are missing or left over."""
    best = None
    for each in compared:
        if each.fits:
            return each
        if best is None or each.faults < best.faults:
            best = each
    return best


def _explain(best: _Comparison, inside: Mapping[str, Tensor], source: str) -> None:
    """Raises the error that lists every name that is missing, left over or of another shape."""
    ours = {name: own for own, name in best.theirs.items()}
    given = {ours.get(name, name): tensor for name, tensor in inside.items()}
    known = {name for name in best.over if names.beside_an_encoder(name)}
    load_strictly(
        best.outline,
        {name: tensor for name, tensor in given.items() if name not in known},
        f"{source}, read as {best.network.encoder},",
    )


def _take(best: _Comparison, inside: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in the types of the encoder, and remarks on what was changed for that."""
    expected = best.outline.state_dict()
    tensors, stored = {}, set()
    for own, name in best.theirs.items():
        if own in best.missing:
            tensors[own] = torch.zeros(expected[own].shape, dtype=expected[own].dtype)
            continue
        found = inside[name]
        if found.is_floating_point() != expected[own].is_floating_point():
            raise CheckpointError(f"{source}: {name} holds numbers of type {found.dtype}, not {expected[own].dtype}.")
        if not found.isfinite().all():
            raise CheckpointError(f"{source}: {name} has values that are not finite: its training has diverged.")
        if found.dtype != expected[own].dtype:
            stored.add(str(found.dtype).removeprefix("torch."))
        tensors[own] = found.to(expected[own].dtype)
    remarks = []
    if best.missing:
        remarks.append(f"The other {len(best.missing)} are counters of batches, {_COUNTER}, which the file lacks "
                       "and features do not depend on: set to 0")  # fmt: skip
    if stored:
        remarks.append(f"Numbers of type {', '.join(sorted(stored))} are kept as float32")
    return tensors, remarks


def _describe_rest(aside: list[str], prefix: str, prefixes: list[str], source: str) -> str:
    """How many tensors were left aside, of what and where; raises CheckpointError where no rule tells what one is."""
    groups: dict[str, list[str]] = defaultdict(list)
    unknown = []
    for name in aside:
        other = next((each for each in prefixes if each != prefix and name.startswith(each)), None)
        if other is not None:
            what, place = "teacher" if names.is_teacher(other) else "other encoder", other.rstrip(".")
        elif known := names.beside_an_encoder(name):
            what, place = known
        else:
            unknown.append(name)
            continue
        groups[what].append(place)
    if unknown:
        raise CheckpointError(
            f"{source} has {len(unknown)} tensors that no rule explains, such as {', '.join(sorted(unknown)[:4])}: "
            "save the state dict of the encoder alone and import that."
        )
    parts = []
    for what, places in groups.items():
        distinct = list(dict.fromkeys(places))
        shown = ", ".join(distinct[:_SHOWN]) + (", ..." if len(distinct) > _SHOWN else "")
        parts.append(f"{len(places)} of the {what} ({shown})")
    return f"{len(aside)} left aside" + (f": {'; '.join(parts)}" if parts else "")
