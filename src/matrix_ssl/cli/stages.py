"""The stages of ``matrix-ssl chain``: pre-training, every protocol, transfer and detection.

A chain is a list of commands of this package. Each of them can resume, and so can the chain: it runs them in turn and
records the finished ones in ``RUN/chain.json``. All results are in one run folder, and its page shows them.
"""

import hashlib
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from matrix_ssl.cli import options
from matrix_ssl.config import Locations, check_agreement, override
from matrix_ssl.config.csv_table import split_suffix
from matrix_ssl.errors import DataError, MatrixSSLError
from matrix_ssl.evaluate.detection.settings import DetectionSettings, check_processes
from matrix_ssl.runs import signals
from matrix_ssl.runs.files import read_object, write_json
from matrix_ssl.runs.folder import read_config
from matrix_ssl.runs.processes import Processes
from matrix_ssl.runs.signals import Interrupted

CHAIN = "chain.json"


@dataclass(frozen=True)
class Stage:
    """One command of a chain.

    Attributes:
        name: name shown to the user.
        arguments: arguments of ``matrix-ssl``.
        parallel: whether it may run in several processes.
        data: the datasets that it reads; empty: the run's; None: the command itself checks, quickly, whether it is
            complete for its data.
    """

    name: str
    arguments: tuple[str, ...]
    parallel: bool = False
    data: tuple[str, ...] | None = None

    def command(self, processes: int) -> list[str]:
        """The command line, with ``torchrun`` if it runs in several processes."""
        launch = [sys.executable, "-m"]
        if self.parallel and processes > 1:
            from matrix_ssl.distributed import launcher  # loads torch

            launch += launcher(processes)
        return [*launch, "matrix_ssl", *self.arguments]

    def digest(self, content: str) -> str:
        """A digest of the arguments and the content of the data, by which a finished stage is recognised."""
        words = "\0".join((*self.arguments, content))
        return hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:16]


class StageFailed(MatrixSSLError):
    """A command of a chain failed after printing its own error."""

    def __init__(self, stage: Stage, code: int):
        super().__init__(
            f"Stage {stage.name!r} failed with exit code {code} (see above). Run the same command to resume."
        )
        self.exit_code = code if code > 0 else 1


def find_coco(folder: Path) -> list[str]:
    """The options of ``matrix-ssl detect`` for a folder laid out like COCO 2017 or with annotations next to the images.

    Annotations are ``instances_train*.json`` and ``instances_val*.json``, in the folder or in ``annotations/``; images
    are the folders, or the .tar files, whose names contain ``train`` and ``val``. Each must be unique.
    """
    chosen = []
    for split in ("train", "val"):
        images = [path for path in folder.glob(f"*{split}*") if path.is_dir() or path.suffix == ".tar"]
        annotations = [
            path for pattern in ("", "annotations/") for path in folder.glob(f"{pattern}instances_{split}*.json")
        ]
        for option, what, paths, pattern in (
            ("images", "folder or .tar of images", images, f"*{split}*"),
            ("annotations", "file of annotations", annotations, f"instances_{split}*.json"),
        ):
            if len(paths) != 1:
                names = ", ".join(sorted(path.name for path in paths)) or "none"
                raise DataError(
                    f"--coco {folder}: expected one {what} {pattern}, found {names}; "
                    "give the four paths to matrix-ssl detect instead."
                )
            chosen += [f"--{split}-{option}", str(paths[0])]
    return chosen


def group_protocols(text: str, settings: Sequence[str]) -> list[list[str]]:
    """Groups the protocols of ``--protocol`` by command; those on frozen features share one pass."""
    from matrix_ssl.evaluate import protocols
    from matrix_ssl.evaluate.trained import protocols as trained

    names = options.names(text)
    protocols.check_protocols(names)
    override(trained.EvaluationSettings(), settings)
    together = [name for name in names if name not in trained.PROTOCOLS]
    return [*([together] if together else []), *([name] for name in names if name in trained.PROTOCOLS)]


def check_detection(text: str, settings: Sequence[str], *, processes: int = 1) -> list[str]:
    """The architectures of ``--architecture``; checks them and the settings hours before they are used."""
    names = options.names(text)
    for name in names:
        check_agreement(settings, {"architecture": ("--architecture", name)})
        check_processes(override(DetectionSettings(), [f"architecture={name}", *settings]), processes)
    return names


def check_stages(
    run: Path, *, transfer: Sequence[str], coco: Sequence[str], encoder: str | None, data_root: Path | None
) -> None:
    """Checks the inputs of transfer and detection hours before they are used, and that a new run is not among them.

    Args:
        run: the folder of the chain.
        transfer: datasets for the protocol ``transfer``.
        coco: options of ``detect`` for its dataset; empty: no detection.
        encoder: architecture of the encoder; None: not known yet.

    Raises:
        DataError: a dataset does not exist or has no labels, or the run would lie among its images.
        ConfigError: detection cannot use such an encoder.
        MissingExtra: the package for detection is not installed.
    """
    from matrix_ssl.data.sources import check_outside, find_splits  # loads torch

    for name in transfer:
        find_splits(name, data_root=data_root).train().labelled()
    images = (value for word, value in itertools.pairwise(coco) if word.endswith("-images"))
    for place in (*transfer, *images) if not run.exists() else ():
        check_outside(run, place, data_root=data_root)
    if coco:
        from matrix_ssl.evaluate.detection.network import check_backbone
        from matrix_ssl.evaluate.detection.shapes import coco_masks

        coco_masks()
        if encoder is not None:
            check_backbone(encoder)


def plan(
    run: Path,
    *,
    pretrain: Sequence[str],
    data: Sequence[str] = (),
    device: str,
    data_root: Path | None = None,
    protocols: Sequence[Sequence[str]],
    transfer: Sequence[str],
    coco: Sequence[str],
    architectures: Sequence[str],
    evaluate_settings: Sequence[str],
    detect_settings: Sequence[str],
) -> list[Stage]:
    """The stages of a chain, in order.

    Args:
        pretrain: arguments of ``pretrain`` after its name, without ``--out``; empty if ``run`` is complete.
        data: the option ``--data`` of ``evaluate``, if it is not the run's dataset.
        device, data_root: the options of the same names.
        protocols: protocols of ``evaluate``, grouped by command.
        transfer: datasets for the protocol ``transfer``.
        coco: options of ``detect`` for its dataset; empty: no detection.
        evaluate_settings, detect_settings: values of ``--set`` of the commands.
    """
    on_device = ("--device", device)
    places = (*on_device, *(("--data-root", str(data_root)) if data_root else ()))
    stages = []
    if pretrain:
        words = ("pretrain", *pretrain, "--out", str(run), *places)
        stages.append(Stage("pre-training", words, True, _options(pretrain, "--data")))
    sets = options.repeated("--set", evaluate_settings)
    for group in protocols:
        trained = not {"knn", "linear", "low-shot", "transfer"} & set(group)
        words = ("evaluate", str(run), "--protocol", ",".join(group), *data, *(sets if trained else ()), *places)
        stages.append(Stage(", ".join(group), words, trained, _options(data, "--data")))
    for name in transfer:
        words = ("evaluate", str(run), "--protocol", "transfer", "--data", name, *places)
        stages.append(Stage(f"transfer to {Path(split_suffix(name)[0]).name}", words, data=(name,)))
    for architecture in architectures if coco else ():
        words = (
            "detect", *coco, "--encoder", str(run), "--architecture", architecture,
            "--out", str(run / "detection" / architecture), *options.repeated("--set", detect_settings), *on_device,
        )  # fmt: skip
        stages.append(Stage(f"detection, {architecture}", words, True))
    return [*stages, Stage("report", ("report", str(run)))]


def _options(words: Sequence[str], name: str) -> tuple[str, ...]:
    """The values of a repeatable option."""
    return tuple(value for word, value in itertools.pairwise(words) if word == name)


def run_stages(
    run: Path, stages: Sequence[Stage], *, processes: int, data_root: Path | None = None, say: Callable[[str], None]
) -> None:
    """Runs the stages that ``RUN/chain.json`` does not list as finished with the same arguments on the same data."""

    @cache
    def content(data: tuple[str, ...]) -> str:
        return _content(data or read_config(run).data.source, data_root)

    done: dict[str, Any] = read_object(run / CHAIN) if (run / CHAIN).exists() else {}
    for number, stage in enumerate(stages, 1):
        if stage.data is not None and stage.name in done and done[stage.name] == stage.digest(content(stage.data)):
            say(f"[{number}/{len(stages)}] {stage.name}: already done.")
            continue
        say(f"[{number}/{len(stages)}] {stage.name}: matrix-ssl {shlex.join(stage.arguments)}")
        code = _run(stage.command(processes))
        if code:
            raise StageFailed(stage, code)
        done |= {stage.name: stage.digest("" if stage.data is None else content(stage.data))}
        write_json(run / CHAIN, done)


def _content(location: Locations, data_root: Path | None) -> str:
    """The digests of the splits of a dataset."""
    from matrix_ssl.data import has_test_split, open_source

    parts: list[Literal["train", "test"]] = ["train"]
    if has_test_split(location, data_root=data_root):
        parts.append("test")
    return " ".join(open_source(location, split=part, data_root=data_root).digest for part in parts)


def _run(command: list[str]) -> int:
    """Runs a command to its end, forwarding signals to it, and returns its exit code; Interrupted after a signal."""
    with signals.collected() as received:
        processes: Processes[None] = Processes(received)
        processes.start(None, command)
        ((_, code),) = processes.wait()
    if received:
        raise Interrupted(received[0], after=" during a chain")
    return code


def summary(stages: Sequence[Stage]) -> str:
    """The commands of a chain, one per line, as a user would type them."""
    return "\n".join(f"matrix-ssl {shlex.join(stage.arguments)}" for stage in stages)
