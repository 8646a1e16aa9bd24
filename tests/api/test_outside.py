"""No command writes its results among the images that it reads: each refuses before the work."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from matrix_ssl.api import diagnosing, exploring, measuring, packing
from matrix_ssl.cli.detect import detect
from matrix_ssl.cli.evaluate import embed
from matrix_ssl.cli.find import search
from matrix_ssl.cli.llm import generate, score
from matrix_ssl.encoder.exporting import Format, export
from matrix_ssl.encoder.importing import as_run
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, RunFolderError
from matrix_ssl.runs.folder import check_output
from tests.support.encoder_runs import make_run
from tests.support.runs import make_images

WHERE = "random/tiny_resnet"


def _export(data: Path, out: Path) -> None:
    run, _ = as_run(WHERE, out=data.parent / "r", say=lambda text: None)
    values = json.loads((run / "config.json").read_text())
    values["data"]["source"] = str(data)
    (run / "config.json").write_text(json.dumps(values))
    export(run, out / "encoder.safetensors", form="safetensors")


def _detect(data: Path, out: Path) -> None:
    words = [word for split in ("train", "val") for what, value in (("images", data), ("annotations", data / "a.json"))
             for word in (f"--{split}-{what}", str(value))]  # fmt: skip
    detect.main([*words, "--encoder", WHERE, "--out", str(out)], standalone_mode=False)


COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "pack": lambda data, out: packing.pack(str(data), out),
    "measure": lambda data, out: measuring.measure(WHERE, str(data), out=out),
    "diagnose": lambda data, out: diagnosing.diagnose(WHERE, str(data), out=out),
    "embed": lambda data, out: embed.main(
        [WHERE, "--data", str(data), "--out", str(out / "f.npz")], standalone_mode=False
    ),
    "export": _export,
    "detect": _detect,
    "search": lambda data, out: search.main(
        [WHERE, "--data", str(data), "--query", "0", "--out", str(out.parent / "x.csv")], standalone_mode=False
    ),
    "explore": lambda data, out: exploring.explore(WHERE, str(data), out=out),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_among_the_images_is_refused(tmp_path: Path, command: str) -> None:
    data = tmp_path / "photos"
    make_images(data, 2)
    before = sorted(data.rglob("*"))
    with pytest.raises(DataError, match=r"is inside the images' folder .*: choose another place for it\.$"):
        COMMANDS[command](data, data / "out")
    assert sorted(data.rglob("*")) == before


def test_a_packed_dataset_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_bytes(b"precious")
    with pytest.raises(DataError, match="is the dataset itself"):
        embed.main([WHERE, "--data", f"{tmp_path}/set.npz", "--out", f"{tmp_path}/set.npz"], standalone_mode=False)
    assert (tmp_path / "set.npz").read_bytes() == b"precious"


def test_an_export_without_room_for_its_work_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run, _ = make_run(tmp_path / "r", "network.encoder=tiny_resnet", "network.width=8", "data.image_size=8")
    monkeypatch.setattr("matrix_ssl.encoder.exporting.FORMATS", {"safetensors": Format(full, "x.safetensors", "")})
    with pytest.raises(
        RunFolderError, match=r"^Temporary files cannot be written in .*: No space left on device\. Let"
    ):
        export(run, form="safetensors")
    assert not (run / "x.safetensors").exists()


@pytest.mark.parametrize("name", ["config.json", "encoder.safetensors", "checkpoints/step-1.safetensors"])
def test_an_output_is_no_file_of_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("precious")
    with pytest.raises(RunFolderError, match="is a file of the run itself: choose another name"):
        check_output(tmp_path / name)
    check_output(tmp_path / "export.safetensors", tmp_path / name)
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize(("command", "words"), [
    (generate, ["--model=~/m", "--data=~/absent.jsonl"]), (score, ["--model=~/m", "--data=~/absent.jsonl"]),
    (score, ["--model=~/absent.jsonl", "--data=~/q.jsonl"]),
])  # fmt: skip
def test_a_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: click.Command, words: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "q.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n')
    with pytest.raises(MatrixSSLError, match=f"{tmp_path}/absent.jsonl"):
        command.main(
            [*words, "--template", "plain", "--device", "cpu", f"--out={tmp_path}/x.jsonl"], standalone_mode=False
        )


@pytest.mark.parametrize(("words", "message"), [
    (["--data", "q.jsonl", "--out", "q.jsonl"], "q.jsonl is read by this command"),
    (["--data", "q.json", "--out", "q.jsonl"], "q.json is read by this command"),
    (["--data", "q.jsonl", "--out", "x.json"], "the accuracies are written there"),
])  # fmt: skip
def test_questions_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text("precious")
    Path("q.json").write_text("precious")
    with pytest.raises((ConfigError, RunFolderError), match=message):
        score.main(["--model", "m", *words], standalone_mode=False)
    if words[-1] == words[1]:
        with pytest.raises(RunFolderError, match=message):
            generate.main(["--model", "m", *words], standalone_mode=False)
    assert Path("q.jsonl").read_text() == Path("q.json").read_text() == "precious"
