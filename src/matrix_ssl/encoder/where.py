"""WHERE an encoder is: the common notation of all commands and functions that take an encoder.

    FOLDER                      a run folder
    FILE                        a checkpoint of this package or of another program; a run's in RUN/checkpoints
    torchvision/NAME[:WEIGHTS]  weights of torchvision, such as torchvision/resnet50:IMAGENET1K_V1
    timm/NAME[.TAG]             weights of timm, such as timm/vit_small_patch14_dinov2.lvd142m
    hf:NAME                     an image model of transformers, by its name on the Hugging Face hub or its folder
    random/NAME                 an architecture at its initialisation, as in network.encoder

A path that begins like one of the other forms is written with ``./`` in front.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matrix_ssl.config.untrusted import expanded
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs.folder import CHECKPOINTS, CONFIG, STEP

RANDOM, TORCHVISION, TIMM, HF, PATH = "random", "torchvision", "timm", "hf", "path"
Kind = Literal["random", "torchvision", "timm", "hf", "path"]
FORMS = "a run folder, a checkpoint file, torchvision/NAME[:WEIGHTS], timm/NAME[.TAG], hf:NAME or random/NAME"
_NAMED: tuple[Literal["random", "torchvision", "timm"], ...] = ("random", "torchvision", "timm")
_EXAMPLES = {RANDOM: "random/resnet50", TORCHVISION: "torchvision/resnet50", TIMM: "timm/resnet50.a1_in1k",
             HF: "hf:facebook/dinov2-small"}  # fmt: skip
_ENDINGS = (".tar", ".pth", ".pt", ".ckpt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Where:
    """A parsed WHERE."""

    kind: Kind
    name: str  # an architecture, a name on the hub, or a path
    weights: str = ""  # torchvision's WEIGHTS or timm's TAG; empty: the default

    @property
    def path(self) -> Path:
        """The path of a run folder or a file."""
        return Path(self.name)

    @property
    def run(self) -> Path | None:
        """The run of a checkpoint, which knows its network and its images; None for all other places."""
        if self.kind != PATH or self.path.parent.name != CHECKPOINTS or not STEP.fullmatch(self.path.name):
            return None
        run = self.path.absolute().parents[1]
        return run if (run / CONFIG).is_file() else None

    @property
    def label(self) -> str:
        """The notation, or the name of a file or folder without its path."""
        if self.kind == PATH:
            return self.path.name
        separator, mark = (":", "") if self.kind == HF else ("/", {TORCHVISION: ":", TIMM: "."}.get(self.kind, ""))
        return f"{self.kind}{separator}{self.name}" + (f"{mark}{self.weights}" if self.weights else "")

    @property
    def folder(self) -> str:
        """A name for a run folder: the file's without its extension, or the form with hyphens.

        For the checkpoint of a run, the name of the run comes first.
        """
        if self.kind != PATH:
            parts = (self.kind, *re.split(r"[/:\\]+", self.name.lstrip("./~")), *re.split(r"[/:]", self.weights))
            return "-".join(part for part in parts if part)
        name = self.path.name
        if self.run is not None:
            name = f"{self.run.name}-{name}"
        while name.endswith(_ENDINGS):
            name = name.rpartition(".")[0]
        return name.encode(errors="replace").decode()  # a run folder's name is Unicode


def read_where(where: str | Path, *, architecture: str | None = None) -> Where:
    """Parses the notation; a ``Path`` is always a path.

    Args:
        architecture: the NAME for a bare ``random`` or ``torchvision``.

    Raises:
        ConfigError: a form lacks its name, or ``where`` is neither text nor a ``Path``.
    """
    check_where(where)
    if isinstance(where, Path):
        return Where("path", os.path.expanduser(where))  # noqa: PTH111, as below
    if where in (RANDOM, TORCHVISION) and architecture:
        where = f"{where}/{architecture}"
    for kind in _NAMED:
        if where == kind or where.startswith(f"{kind}/"):
            name = where[len(kind) + 1 :]
            name, _, weights = name.partition({"timm": ".", "torchvision": ":", "random": "\0"}[kind])
            return Where(kind, _named(name, where, kind), weights)
    if where.startswith(f"{HF}:"):
        return Where("hf", _named(where.removeprefix(f"{HF}:"), where, HF))
    return Where("path", os.path.expanduser(where))  # noqa: PTH111, a Path drops "./" and fails for ~nobody


def check_where(where: object) -> None:
    """Raises ConfigError for anything other than text or a ``Path``."""
    if not isinstance(where, (str, Path)):
        raise ConfigError(f"An encoder of type {type(where).__name__}: name {FORMS}.")


def is_folder(where: str | Path) -> bool:
    """Whether WHERE is a folder, as a run is."""
    place = read_where(where)
    return place.kind == PATH and place.path.is_dir()


def absolute(where: str) -> str:
    """WHERE with an absolute path if it is an existing file or folder, so that it is valid anywhere; else unchanged."""
    place = read_where(where)
    if place.kind == PATH:
        return str(place.path.absolute()) if place.path.exists() else where
    if place.kind == HF and expanded(place.name).exists():
        return f"{HF}:{expanded(place.name).absolute()}"
    return where


def _named(name: str, where: str, kind: str) -> str:
    if not name:
        raise ConfigError(f"{where!r} needs an architecture: write it as {_EXAMPLES[kind]}.")
    return name
