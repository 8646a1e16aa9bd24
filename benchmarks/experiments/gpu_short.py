"""A comparison of methods on CIFAR-10 with ResNet-18, for a GPU that is there for a quarter of an hour at a time.

    python -m benchmarks.experiments.gpu_short --data-root DATA --state STATE
    python -m benchmarks.experiments.gpu_short --data-root DATA --state STATE --seconds 300 --methods simclr vicreg

One call is a part: it trains for ``--seconds`` at most, leaves everything that the next one needs in STATE, and ends.
The same command goes on, here or on a different machine to which STATE was copied, until the table has all its rows;
it ends with the bits that a single long call has (same machine, same versions). ``state.json`` has the rows as they
arrive, and the digests of ``pieces``, files of 15 MiB at most: the run that was cut off, or its encoder where only the
evaluation is missing. WORK is scratch.

The encoder is compiled and the images stay on the device. Seeds are the outer loop, so that every method gets its
first row before any gets its second. Every method has the settings of the recipe; the test images are read once, at
the end of every run.
"""

import argparse
import hashlib
import io
import json
import shutil
import signal
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import harness
from benchmarks.experiments.sweep import measure_encoder
from matrix_ssl import config
from matrix_ssl.config import RunConfig
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import Source, open_source
from matrix_ssl.data.base import PlacedSource, in_memory
from matrix_ssl.encoder import load_encoder
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.methods import Method
from matrix_ssl.runs import checkpoint, devices
from matrix_ssl.runs import environment as run_environment
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.runs.folder import CHECKPOINTS, CONFIG, SUMMARY
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training import setup

PIECE = 15 * 2**20  # bytes
SECONDS = 480
METHODS = ("simclr", "matrix_entropy", "matrix_ssl")
PROTOCOLS = ["knn", "linear"]
STATE, PIECES = "state.json", "pieces"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="Folder of what a part leaves to the next one.")
    parser.add_argument("--work", type=Path, help="Scratch folder.  [default: STATE/work]")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds.")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for every method.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="Length of a part, evaluation not counted.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--eager", action="store_true", help="Compile nothing.")
    arguments = parser.parse_args()
    comparison = Comparison(
        state=arguments.state, work=arguments.work or arguments.state / "work", recipe=arguments.recipe,
        methods=arguments.methods, seeds=arguments.seeds, settings=arguments.set, compiled=not arguments.eager,
    )  # fmt: skip
    comparison.advance(data_root=arguments.data_root, device=arguments.device, seconds=arguments.seconds)
    comparison.show()


class Comparison:
    """The table, as far as it has come.

    Args:
        state, work: folders of what is kept and of what may be lost between two parts.
        settings: of every run, ``key=value``.

    Raises:
        ConfigError: the folder holds a different comparison.
    """

    def __init__(
        self,
        *,
        state: Path,
        work: Path,
        recipe: str,
        methods: list[str],
        seeds: int,
        settings: list[str],
        compiled: bool,
    ):
        self.state, self.work, self.compiled = state, work, compiled
        base = find_recipe(recipe)
        self.runs: dict[str, RunConfig] = {}
        for seed in range(seeds):
            for name in methods:
                chosen = config.override(setup.use_method(base, name, papers=False), [*settings, f"seed={seed}"])
                self.runs[f"{name}-{seed}"] = setup.complete(chosen)
        self.content: dict[str, Any] = {"rows": {}, "pieces": {}}
        if (state / STATE).exists():
            self.content = read_json(state / STATE)
        for name, run in self.runs.items():
            row = self.content["rows"].get(name)
            if row is not None and row["config"] != as_json(run):
                raise ConfigError(f"{state}: the row of {name} has different settings; choose a different --state.")

    def advance(self, *, data_root: Path | None, device: str, seconds: float) -> None:
        """Trains and evaluates what is missing, until the time is over."""
        end = time.monotonic() + seconds
        place = devices.choose_device(device)
        if all(name in self.content["rows"] for name in self.runs):
            return
        first = next(iter(self.runs.values())).data
        learn, test = (images(first.source, split, data_root) for split in ("train", "test"))
        for name, run in self.runs.items():
            if name in self.content["rows"]:
                continue
            left = end - time.monotonic()
            if left <= 0 or not self.train(name, run, learn, device=place, seconds=left):
                return
            folder = self.work / name
            self.save({name: pack(folder, self.state / PIECES)})  # the evaluation may be cut off, too
            row = {
                "config": as_json(run),
                "encoder_digest": checkpoint.digest(load_encoder(folder).state_dict()),
                "accuracy": measure_encoder(load_encoder(folder), run.data, learn, test, PROTOCOLS),
                "environment": run_environment.environment(
                    device=place.type, device_name=devices.device_name(place),
                    threads=torch.get_num_threads(), processes=1,
                ),
            }  # fmt: skip
            self.content["rows"][name] = row
            self.save({})
            shutil.rmtree(folder)

    def train(self, name: str, run: RunConfig, learn: Source, *, device: torch.device, seconds: float) -> bool:
        """Trains a run, on from its newest checkpoint, for some seconds at most; whether it is complete."""
        folder = self.work / name
        if not folder.exists() and name in self.content["pieces"]:
            unpack(self.state / PIECES, self.content["pieces"][name], folder)
        if folder.exists() and (folder / CONFIG).exists() and read_json(folder / CONFIG) != as_json(run):
            raise ConfigError(f"{folder}: the run was begun with different settings; choose a different --state.")
        if (folder / SUMMARY).exists():
            return True
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config.to_dict(run))
        training = setup.prepare(run, source=learn, device=device, display=Display(quiet=True))
        if self.compiled:
            compile_encoders(training.method)
        timer = threading.Timer(seconds, signal.raise_signal, [signal.SIGTERM])
        timer.daemon = True
        timer.start()
        try:
            training.train(folder)
        except Interrupted as stop:
            if stop.number != signal.SIGTERM:
                raise
            self.save({name: pack(folder, self.state / PIECES)})
            return False
        finally:
            timer.cancel()
        shutil.rmtree(folder / CHECKPOINTS)
        return True

    def save(self, pieces: dict[str, list[dict[str, str]]]) -> None:
        """Writes rows and the digests of the pieces, and then removes pieces that these do not name."""
        self.content |= {"command": harness.command(), "pieces": pieces}
        write_json(self.state / STATE, self.content)
        kept = {piece["file"] for listed in pieces.values() for piece in listed}
        for path in (self.state / PIECES).glob("*"):
            if path.name not in kept:
                path.unlink()

    def show(self) -> None:
        """Prints mean and standard deviation over seeds, and how much is missing."""
        table = Table("method", "seeds", *(f"{measure}" for measure in ("linear", "knn_20", "knn_1")))
        names = dict.fromkeys(name.rpartition("-")[0] for name in self.runs)
        rows = {name: row for name, row in self.content["rows"].items() if name in self.runs}
        for method in names:
            found = [row["accuracy"] for name, row in rows.items() if name.rpartition("-")[0] == method]
            cells = []
            for measure in ("linear", "knn_20", "knn_1"):
                value = summarise([accuracy[measure] for accuracy in found]) if found else None
                spread = f" ± {100 * value['sd']:.1f}" if value and value["n"] > 1 else ""
                cells.append(f"{100 * value['mean']:.1f}{spread}" if value else "–")
            table.add_row(method, str(len(found)), *cells)
        Console().print(table)
        Console().print(f"{len(rows)} of {len(self.runs)} rows." + ("" if len(rows) == len(self.runs) else " Run the "
                        "same command to go on."))  # fmt: skip


def as_json(run: RunConfig) -> dict[str, Any]:
    """A configuration as it is read back from its file."""
    value: dict[str, Any] = json.loads(json.dumps(config.to_dict(run)))
    return value


def images(location: Any, split: Any, data_root: Path | None) -> Source:
    """One split of a dataset, decoded, so that it can stay on the device."""
    source = open_source(location, split=split, data_root=data_root)
    if source.images is not None:
        return source
    if not isinstance(source, PlacedSource):
        raise DataError(f"{source.name!r} cannot be kept in memory: choose a dataset of images of one size.")
    return in_memory(source, most=None)


def compile_encoders(method: Method) -> None:
    """Compiles the encoders of student and teacher in place; the names of their tensors stay."""
    method.encoder.compile()
    if (teacher := method.teacher_encoder()) is not None:
        teacher.compile()


def pack(folder: Path, pieces: Path) -> list[dict[str, str]]:
    """Writes a run folder, of checkpoints the newest, as files of ``PIECE`` bytes at most; their names and digests."""
    older = checkpoint.list_checkpoints(folder)[:-1]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path not in older:
                archive.add(path, arcname=str(path.relative_to(folder)))
    content = stream.getvalue()
    pieces.mkdir(parents=True, exist_ok=True)
    listed = []
    for start in range(0, len(content), PIECE):
        part = content[start : start + PIECE]
        digest = hashlib.sha256(part).hexdigest()
        path = pieces / f"{folder.name}-{start // PIECE}-{digest[:8]}"
        path.write_bytes(part)
        listed.append({"file": path.name, "sha256": digest})
    return listed


def unpack(pieces: Path, listed: list[dict[str, str]], folder: Path) -> None:
    """Makes the run folder again; DataError where a piece is missing or damaged."""
    content = b""
    for piece in listed:
        path = pieces / piece["file"]
        part = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(part).hexdigest() != piece["sha256"]:
            raise DataError(f"{path}: the piece is missing or damaged; copy it again.")
        content += part
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")


if __name__ == "__main__":
    main()
