"""Commands that are killed in their first write: the same command takes the folder up, and leaves others alone."""

from pathlib import Path

import pytest

from tests.support import comparisons, drawn_coco
from tests.support.runs import BARE, fail, run, succeed, tiny

KILLED = "import os, signal; os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
BEFORE = {"pretrain": BARE, "import": "", "compare": comparisons.FORKED, "detect": drawn_coco.THINLY}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By name, the words of a command that begins a folder ``r``."""
    return {
        "pretrain": tiny("data.subset=128"),
        "import": ["import", "random", "--architecture", "resnet18", "--image-size", "32", "--out", "r"],
        "compare": comparisons.words("--seeds", "1", "--trials", "1", "--budget", "1", methods="simsiam", out="r"),
        "detect": drawn_coco.arguments(drawn_coco.write_set(tmp_path_factory.mktemp("data")), "epochs=1"),
    }


@pytest.mark.parametrize(
    ("name", "fresh"), [*((name, False) for name in BEFORE), pytest.param("compare", True, marks=pytest.mark.slow)]
)
def test_a_kill_in_the_first_write(tmp_path: Path, commands: dict[str, list[str]], name: str, fresh: bool) -> None:
    first = "plan.json" if name == "compare" else "config.json"
    assert run(tmp_path, commands[name], before=f"{BEFORE[name]}\n{KILLED}").code == -9
    left = [path.name for path in (tmp_path / "r").iterdir() if path.name != ".lock"]
    assert len(left) == 1 and left[0].startswith(f".{first}.") and left[0].endswith(".tmp")
    succeed(tmp_path, commands[name], before=BEFORE[name])
    if name == "compare" and fresh:
        succeed(tmp_path, [*commands[name], "--fresh"], before=BEFORE[name])
        assert (tmp_path / "r.1" / "compare.json").exists() and (tmp_path / "r" / "compare.json").exists()
    assert (tmp_path / "r" / first).exists() and not list((tmp_path / "r").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        pytest.param(name, hidden, marks=[] if hidden == ".notes.tmp" or name == "pretrain" else pytest.mark.slow)
        for name in BEFORE for hidden in (".notes.tmp", ".config.json.tmp", ".plan.json.tmp", ".notes.txt.ab12cd34.tmp")
    ],
)  # fmt: skip
def test_a_hidden_file_of_the_user_is_no_temporary_file(
    tmp_path: Path, commands: dict[str, list[str]], name: str, hidden: str
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / hidden).write_text("mine")
    assert "r is not empty and has no" in fail(tmp_path, commands[name], before=BEFORE[name])
    assert comparisons.contents(tmp_path / "r") == {hidden: b"mine"}
