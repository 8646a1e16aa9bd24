"""Whole runs of the command line for tests: real processes, forked from one that has imported everything already."""

import atexit
import functools
import json
import os
import re
import shutil
import signal
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from PIL import Image

from matrix_ssl.cli.main import commands
from matrix_ssl.cli.offered import find_command, has
from matrix_ssl.data import open_source
from matrix_ssl.runs.checkpoint import encode, list_checkpoints, load_newest, read_safetensors
from tests.support.forkserver import fork_server

# float32 on every machine, so that bits and tolerances do not depend on the processor
TINY = [
    "precision=float32",
    "batch_size=64",
    "network.width=8",
    "method.hidden_dim=32",
    "method.output_dim=16",
    "optimizer.warmup_epochs=0",
]
PATIENCE = 600.0  # seconds that any run may take on a very busy machine; what takes longer hangs
# the pages after a training cost more than these trainings and have tests of their own
BARE = "import sys; sys.argv.append('--no-report')"
_NAMED = re.compile(r"(matrix-ssl (?:llm )?[a-z]+)|--set ([\w.]+)=|(--[a-z][a-z-]+)")
UNPRIVILEGED = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)"  # what root must become to be refused


def tiny(*settings: str, epochs: int = 1) -> list[str]:
    """Arguments of ``pretrain`` for 22 steps an epoch on handwritten digits, into the folder ``r``."""
    settings = (*TINY, f"epochs={epochs}", *settings)
    words = [word for setting in settings for word in ("--set", setting)]
    return ["pretrain", "demo", "--out", "r", "--device", "cpu", *words]


def from_files(images: Path | str, *settings: str, epochs: int = 1) -> list[str]:
    """Arguments of ``pretrain`` with batches of 16 small images that two processes read, into the folder ``r``."""
    shape = ("network.encoder=tiny_resnet", "data.image_size=16", "data.workers=2", "batch_size=16")
    settings = (*TINY, *shape, f"epochs={epochs}", *settings)
    words = [word for setting in settings for word in ("--set", setting)]
    return ["pretrain", "images", "--data", str(images), "--out", "r", "--device", "cpu", *words]


def make_images(folder: Path, count: int) -> list[Path]:
    """Writes JPEG files of handwritten digits, 24 by 20 pixels, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    images = open_source("digits", split="train", data_root=None).images
    assert images is not None
    paths = [folder / f"{index:03d}.jpg" for index in range(count)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image[0].numpy()).convert("RGB").resize((24, 20)).save(path)
    return paths


@dataclass(frozen=True)
class Ended:
    """A process that has ended; a negative code is the number of the signal that killed it."""

    code: int
    out: str
    err: str


class Command:
    """A running command line."""

    def __init__(self, pid: int, server: "Server", out: Path, err: Path, arguments: list[str]):
        self.pid, self._server, self._out, self._err, self._arguments = pid, server, out, err, arguments

    def send(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def err(self) -> str:
        """What it has written to standard error so far."""
        return self._err.read_text()

    def out(self) -> str:
        """What it has written to standard output so far."""
        return self._out.read_text()

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """Waits for the end; a process that does not end is killed and fails the test."""
        code = self._server.ask({"wait": self.pid, "seconds": seconds})
        if code is None:
            os.killpg(self.pid, 9)
            raise AssertionError(f"still running after {seconds} s: {self.err()}")
        result = Ended(code, self._out.read_text(), self.err())
        check_remedies(self._arguments, result.err)
        self._out.unlink()
        self._err.unlink()
        return result


def start(
    folder: Path, arguments: list[str], *, before: str = "", environment: dict[str, str] | None = None
) -> Command:
    """Starts ``matrix-ssl`` in a folder, after executing the Python code ``before`` in the new process."""
    return Server.get().start(folder, arguments, before, environment or {})


def run(folder: Path, arguments: list[str], *, before: str = "", environment: dict[str, str] | None = None) -> Ended:
    """Runs ``matrix-ssl`` in a folder to its end."""
    return start(folder, arguments, before=before, environment=environment).wait()


def succeed(folder: Path, arguments: list[str], *, before: str = "") -> Ended:
    """Runs ``matrix-ssl`` and demands exit code 0."""
    ended = run(folder, arguments, before=before)
    assert ended.code == 0, ended.err
    return ended


def fail(folder: Path, arguments: list[str], *, before: str = "", code: int | None = None) -> str:
    """Runs ``matrix-ssl``, demands a non-zero exit code and returns the one error line that it ends with."""
    return check_failure(run(folder, arguments, before=before), code=code)


def check_failure(ended: Ended, *, code: int | None = None) -> str:
    """Demands a non-zero exit code and a single error line, the last, without a traceback. Returns it."""
    assert ended.code == (code or ended.code) > 0, ended
    assert "Traceback" not in ended.err, ended.err
    *_, last = ended.err.splitlines()
    assert last.startswith("error: ") and ended.err.count("error: ") == 1, ended.err
    return last.removeprefix("error: ")


def check_remedies(arguments: list[str], text: str) -> None:
    """Demands that the options and settings that a command names are its own, or those of a command named with them."""
    own = find_command(commands, arguments)
    if own is None or own[0] == "chain":  # which shows what other commands say
        return
    others = [find_command(commands, name.split()) for name in leaves(commands)]
    for line in text.splitlines():
        command = own
        for other, setting, option in _NAMED.findall(line):
            if other:
                command = find_command(commands, other.split()[1:]) or command
            elif any(one and has(*one, setting or option) for one in others):
                assert has(*command, setting or option), f"{command[0]} has no {setting or option}: {line}"


def leaves(group: click.Group, prefix: str = "") -> list[str]:
    """The names of all commands."""
    names: list[str] = []
    for name, command in group.commands.items():
        names += leaves(command, f"{prefix}{name} ") if isinstance(command, click.Group) else [prefix + name]
    return names


def start_processes(folder: Path, arguments: list[str], *, count: int, before: str = BARE) -> list[Command]:
    """Starts ``matrix-ssl`` as ``torchrun`` does: processes that find each other by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
    return [
        start(folder, arguments, before=before, environment={k: str(v) for k, v in each.items()})
        for each in environments
    ]


def lines(run_folder: Path) -> list[dict]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def timeless(run_folder: Path) -> list[dict]:
    """The lines of ``metrics.jsonl`` without what the clock decides."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "run")}
        for line in lines(run_folder)
    ]


def without_identity(run_folder: Path) -> None:
    """Makes the files of a run those of an earlier version, which did not carry the identity of their run."""
    for path in (run_folder / "summary.json", *(run_folder / "evaluation").glob("*/*.json")):
        path.write_text(
            json.dumps({k: v for k, v in json.loads(path.read_text("utf-8")).items() if k != "run"}), "utf-8"
        )
    rows = [{k: v for k, v in line.items() if k != "run"} for line in lines(run_folder)]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for path in (run_folder / "encoder.safetensors", *list_checkpoints(run_folder)):
        stored, metadata = read_safetensors(path)
        path.write_bytes(encode(stored, {k: v for k, v in metadata.items() if k not in ("sha256", "run")}))


def tensors(run_folder: Path) -> dict[str, bytes]:
    """Every tensor of the encoder and of the newest checkpoint, as bytes; a checkpoint also holds a time."""
    found, problems = load_newest(run_folder)
    assert found is not None and not problems
    encoder, _ = read_safetensors(run_folder / "encoder.safetensors")
    moments = {f"{i}.{k}": v for i, state in found.optimizer["state"].items() for k, v in state.items()}
    parts = {"encoder": encoder, f"model after {found.step}": found.model, "optimizer": moments}
    return {f"{part}: {k}": v.numpy().tobytes() for part, values in parts.items() for k, v in values.items()}


@functools.cache
def _scratch() -> Path:
    folder = tempfile.mkdtemp(prefix="matrix-ssl-runs-")
    atexit.register(shutil.rmtree, folder)
    return Path(folder)


class Server:
    """The process that forks the others; one is shared by all tests of a process of pytest."""

    def __init__(self) -> None:
        self._pid, ask, hear = fork_server()
        self._requests, self._replies = os.fdopen(ask, "w"), os.fdopen(hear)
        self._started = 0
        atexit.register(self._stop, os.getpid())

    @staticmethod
    @functools.cache
    def get() -> "Server":
        """The one that all tests share."""
        return Server()

    def _stop(self, owner: int) -> None:
        if os.getpid() == owner:  # and not a process that was forked from it
            os.kill(self._pid, signal.SIGTERM)
            os.waitpid(self._pid, 0)

    def ask(self, request: dict) -> int | None:
        """Sends a request and returns the answer."""
        print(json.dumps(request), file=self._requests, flush=True)
        return json.loads(self._replies.readline())

    def start(self, folder: Path, arguments: list[str], before: str, environment: dict[str, str]) -> Command:
        """Starts ``matrix-ssl`` in a folder, after executing the Python code ``before`` in the new process."""
        self._started += 1
        out, err = (_scratch() / f"{self._pid}-{self._started}.{end}" for end in ("out", "err"))
        for path in (out, err):
            path.touch()
        request = {
            "arguments": arguments, "folder": str(folder), "stdout": str(out), "stderr": str(err),
            "before": before, "environment": environment,
        }  # fmt: skip
        pid = self.ask(request)
        assert pid is not None
        return Command(pid, self, out, err, arguments)


def slow_steps(seconds: float) -> str:
    """Code for ``before``: every step of a training takes that much longer."""
    return f"""
import time, matrix_ssl.training.engine as e
update = e.Engine.update
def slow(self, *rest):
    time.sleep({seconds})
    return update(self, *rest)
e.Engine.update = slow
"""
