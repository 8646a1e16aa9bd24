"""Commands that are killed before any of their writes: the same command takes up what is there, and no half file stays.

Before every call of the system that makes, opens for writing, renames or removes something in the folder, the process
kills itself; the next one starts from what it left, and is killed one call later, until one ends by itself. Where a
command starts others, the calls of all count, and it is killed with them.

A disk that is full from any of these calls on is one sentence, and nothing unfinished stays either.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import comparisons, llm_toys
from tests.support.drawn_coco import THINLY, arguments, write_set
from tests.support.runs import BARE, from_files, make_images, run, succeed

WATCHED = """
import errno, mmap, os, signal, sys
here, first, calls = os.getcwd(), os.getpid(), mmap.mmap(-1, 4)  # shared with the processes that it starts
WRITING = os.O_WRONLY | os.O_RDWR
def watch(event, arguments):
    if event == "open":
        if not isinstance(arguments[0], (str, bytes, os.PathLike)) or not arguments[2] & WRITING:
            return
    elif event not in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        return
    place = os.path.abspath(os.fsdecode(arguments[0]))
    if place.startswith(here):
        number = int.from_bytes(calls[:]) + 1
        calls[:] = number.to_bytes(4)
        act(event, place, number)
"""
KILLED = f"""{WATCHED}
def act(event, place, number):
    if number == {{calls}}:
        os.kill(first, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""
FULL = f"""{WATCHED}
def act(event, place, number):
    if number >= {{calls}} and event in ("open", "os.mkdir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
sys.addaudithook(watch)
"""
ANNOUNCED = """
import os, sys, torch, safetensors.torch
def announced(real):  # their own writers open files where Python does not see it
    def save(values, path, *rest, **options):
        if isinstance(path, (str, os.PathLike)):
            sys.audit("open", os.fspath(path), "wb", os.O_WRONLY)
        return real(values, path, *rest, **options)
    return save
torch.save, safetensors.torch.save_file = announced(torch.save), announced(safetensors.torch.save_file)
"""


def into(folder: str, words: list[str]) -> list[str]:
    """The words of a command with another folder for its results."""
    place = words.index("--out") + 1
    return [*words[:place], folder, *words[place + 1 :]]


def set_to(*assignments: str) -> list[str]:
    """Each as an option ``--set``."""
    return [word for assignment in assignments for word in ("--set", assignment)]


MOST = 300  # writes of any of these commands
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
    "detect": into(
        "t", arguments(Path("drawn"), "epochs=1", "bootstrap=5", "precise_bn=0", "train_sizes=64", "regions=4")
    ),
    "finetune": ["llm", "finetune", "--model", "model", "--data", "q.jsonl", "--template", "plain", *ON_CPU,
                 "--out", "l", *set_to("epochs=1", "batch_size=4", "save_strategy=steps", "save_steps=1")],
    "compare": comparisons.words(
        "--seeds", "1", "--trials", "1", "--budget", "1", "--jobs", "1", settings=("data.subset=128",)
    ),
    "chain": ["chain", *into("c", from_files("photos", "data.workers=0"))[1:], "--protocol", "knn,fine-tune",
              "--evaluate-set", "fine_tune.epochs=1", "--evaluate-set", "fine_tune.batch_size=8"],
    "worth": ["worth", "images", "--data", "photos", "--from", "r", "--seeds", "1", "--epochs", "1", "--out", "w",
              *ON_CPU, *from_files("photos", "data.workers=0", "batch_size=8")[8:],
              "--tune-set", "steps=2", "--tune-set", "batch_size=4", "--tune-set", "rates=none"],
    "diagnose": ["diagnose", "r", "--data", "photos", "--images", "8", "--out", "g", *ON_CPU],
}  # fmt: skip
BEFORE = {"detect": THINLY, "finetune": ANNOUNCED, "compare": comparisons.FORKED, "chain": comparisons.FORKED}
SAME = (".npz", ".csv", ".safetensors", ".npy")  # files whose bytes are a function of what was asked


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a run that was trained on them and a file of its features."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("ant", "bee"):
        make_images(folder / "photos" / name, 12)
    succeed(folder, from_files("photos", "data.workers=0"), before=BARE)
    succeed(folder, ["embed", "r", "--data", "photos", "--out", "f.npz", *ON_CPU])
    (folder / "drawn").mkdir()
    write_set(folder / "drawn", train=4, val=2)
    llm_toys.llama().save_pretrained(folder / "model")
    llm_toys.tokenizer().save_pretrained(folder / "model")
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in llm_toys.questions(8)), "utf-8")
    return folder


def copied(inputs: Path, folder: Path) -> Path:
    """A folder of its own with the run, and the other inputs by links."""
    folder.mkdir()
    shutil.copytree(inputs / "r", folder / "r")
    for name in ("photos", "f.npz", "drawn", "model", "q.jsonl"):
        (folder / name).symlink_to(inputs / name)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file, with its bytes where they are the same each time; a checkpoint of the engine also holds a time."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    same = {path for path in files if path.suffix in SAME and path.parent.name != "checkpoints"}
    return {str(path.relative_to(folder)): path.read_bytes() if path in same else b"" for path in files}


def kill_at_every_write(
    folder: Path, words: list[str], environment: dict[str, str], *, before: str = "", step: int = 1
) -> int:
    """Runs a command again and again, killed some writes later each time, until it ends; returns how often it was."""
    for kills, calls in enumerate(range(1, MOST, step)):
        ended = run(folder, words, before=before + KILLED.format(calls=calls), environment=environment)
        if ended.code == 0:
            return kills
        assert ended.code == -9, (calls, ended)
    raise AssertionError(f"{words[0]} does not end.")


def fill_at_every_write(folder: Path, words: list[str], environment: dict[str, str], *, before: str = "") -> int:
    """The same where the disk is full from such a write on: each time one sentence, and nothing unfinished is left."""
    for refusals, calls in enumerate(range(1, MOST)):
        ended = run(folder, words, before=before + FULL.format(calls=calls), environment=environment)
        if ended.code == 0:
            return refusals
        last = ended.err.splitlines()[-1]
        assert ended.code == 1 and "Traceback" not in ended.err, (calls, ended)
        assert last.startswith("error: ") and ("No space left" in ended.err), (calls, ended)
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")], (calls, ended)
    raise AssertionError(f"{words[0]} does not end.")


def test_an_import_is_taken_up(tmp_path: Path) -> None:
    assert kill_at_every_write(tmp_path, COMMANDS["import"], {}, step=4) > 1
    files = {path.name for path in (tmp_path / "i").iterdir()}
    assert "encoder.safetensors" in files and not any(name.endswith(".tmp") for name in files)


@pytest.mark.slow
@pytest.mark.parametrize("survive", [kill_at_every_write, fill_at_every_write])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "import"])
def test_commands_are_taken_up(inputs: Path, tmp_path: Path, name: str, survive: Callable[..., int]) -> None:
    environment = {"MATRIX_SSL_CACHE": str(tmp_path / "cache")}
    folder, before = copied(inputs, tmp_path / "w"), f"{BEFORE.get(name, '')}\n"
    ended = run(folder, COMMANDS[name], before=before, environment=environment)
    assert ended.code == 0, ended.err
    undisturbed = content(folder)
    shutil.rmtree(folder)  # its path stands in some files
    copied(inputs, folder)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert survive(folder, COMMANDS[name], environment, before=before) > 0
    assert content(folder) == undisturbed
