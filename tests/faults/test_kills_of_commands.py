"""Commands that are killed before any of their writes: the same command takes up what is there, and no half file stays.

Before every call of the system that makes, opens for writing, renames or removes something in the folder, the process
kills itself; the next one starts from what it left, and is killed one call later, until one ends by itself.
"""

import shutil
from pathlib import Path

import pytest

from tests.support.runs import BARE, from_files, make_images, run, succeed

KILLED = """
import os, signal, sys
here, left = os.getcwd(), {calls}
WRITING = os.O_WRONLY | os.O_RDWR
def die(event, arguments):
    global left
    if event == "open":
        if not isinstance(arguments[0], (str, bytes, os.PathLike)) or not arguments[2] & WRITING:
            return
    elif event not in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        return
    if os.path.abspath(os.fsdecode(arguments[0])).startswith(here):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
"""
MOST = 200  # writes of any of these commands
ON_CPU = ("--device", "cpu")
COMMANDS = {
    "import": ["import", "random/tiny_resnet", "--image-size", "16", "--out", "i"],
    "export": ["export", "r", "--out", "e.safetensors"],
    "embed": ["embed", "r", "--data", "photos", "--out", "f2.npz", *ON_CPU],
    "duplicates": ["duplicates", "f.npz", "--data", "photos", "--out", "d.csv", "--page", "d.html"],
    "measure": ["measure", "f.npz", "--out", "m"],
    "pack": ["pack", "photos", "p", "--workers", "0"],
    "report": ["report", "r"],
    "explore": ["explore", "f.npz", "--data", "photos", "--out", "page", "--map", "pca"],
    "evaluate": ["evaluate", "r", "--data", "photos", "--protocol", "knn", "--no-report", *ON_CPU],
    "diagnose": ["diagnose", "r", "--data", "photos", "--images", "8", "--out", "g", *ON_CPU],
}
SAME = (".npz", ".csv", ".safetensors", ".npy")  # files whose bytes are a function of what was asked


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a run that was trained on them and a file of its features."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("ant", "bee"):
        make_images(folder / "photos" / name, 12)
    succeed(folder, from_files("photos", "data.workers=0"), before=BARE)
    succeed(folder, ["embed", "r", "--data", "photos", "--out", "f.npz", *ON_CPU])
    return folder


def copied(inputs: Path, folder: Path) -> Path:
    """A folder of its own with the run, and the other inputs by links."""
    folder.mkdir()
    shutil.copytree(inputs / "r", folder / "r")
    for name in ("photos", "f.npz"):
        (folder / name).symlink_to(inputs / name)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file, with its bytes where they are the same each time."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() if path.suffix in SAME else b"" for path in files}


def kill_at_every_write(folder: Path, words: list[str], environment: dict[str, str], *, step: int = 1) -> int:
    """Runs a command again and again, killed some writes later each time, until it ends; returns how often it was."""
    for kills, calls in enumerate(range(1, MOST, step)):
        ended = run(folder, words, before=KILLED.format(calls=calls), environment=environment)
        if ended.code == 0:
            return kills
        assert ended.code == -9, (calls, ended)
    raise AssertionError(f"{words[0]} does not end.")


def test_an_import_is_taken_up(tmp_path: Path) -> None:
    assert kill_at_every_write(tmp_path, COMMANDS["import"], {}, step=4) > 1
    files = {path.name for path in (tmp_path / "i").iterdir()}
    assert "encoder.safetensors" in files and not any(name.endswith(".tmp") for name in files)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "import"])
def test_commands_are_taken_up(inputs: Path, tmp_path: Path, name: str) -> None:
    environment = {"MATRIX_SSL_CACHE": str(tmp_path / "cache")}
    folder = copied(inputs, tmp_path / "w")
    ended = run(folder, COMMANDS[name], environment=environment)
    assert ended.code == 0, ended.err
    undisturbed = content(folder)
    shutil.rmtree(folder)  # its path stands in some files
    copied(inputs, folder)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert kill_at_every_write(folder, COMMANDS[name], environment) > 0
    assert content(folder) == undisturbed
