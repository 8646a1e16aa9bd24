"""The folder of a run that was given none: different images have different folders, the same images the same one."""

import json
from pathlib import Path

import pytest

from matrix_ssl.training.configure import default_run, run_folder


def record(run: Path, data: str | list[str], name: str = "config.json") -> Path:
    """Writes what a run, or a comparison, records of its images."""
    run.mkdir(parents=True)
    source = {"data": {"source": data}}
    (run / name).write_text(json.dumps(source if name == "config.json" else {"base": source}))
    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images in several folders of one name."""
    for name in ("fold1/train", "fold2/train", "a/images", "b/images", "b/c/images"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_of_one_name_have_runs_of_their_own(folder: Path) -> None:
    assert run_folder("images", "fold1/train", None) == Path("runs/train")
    record(Path("runs/train"), str(folder / "fold1/train"))
    assert (
        run_folder("images", "fold1/train", None) == run_folder("images", "./fold1/train", None) == Path("runs/train")
    )
    assert run_folder("images", "fold2/train", None) == Path("runs/fold2-train")
    record(Path("runs/fold2-train"), str(folder / "fold2/train"))
    assert run_folder("images", "fold2/train", None) == Path("runs/fold2-train")  # again: it resumes
    assert run_folder("images", "fold2/train", "simclr") == Path("runs/train-simclr")  # nothing is there


def test_a_name_grows_until_it_is_free(folder: Path) -> None:
    record(Path("runs/images"), str(folder / "a/images"))
    record(Path("runs/c-images"), str(folder / "b/images"))
    assert run_folder("images", "b/c/images", None) == Path("runs/b-c-images")
    assert run_folder("images", "b/images", None) == Path("runs/b-images")


def test_the_run_of_a_moved_folder_is_resumed(folder: Path) -> None:
    record(Path("runs/images"), str(folder / "gone/images"))
    assert run_folder("images", "a/images", None) == Path("runs/images")


def test_of_several_folders(folder: Path) -> None:
    both = ("a/images", "b/images")
    assert run_folder("images", both, None) == Path("runs/images-images")
    record(Path("runs/images-images"), [str(folder / name) for name in ("fold1/train", "fold2/train")])
    assert run_folder("images", both, None) == Path("runs/a-images-b-images")


def test_of_a_comparison_and_of_names_that_are_no_folders(folder: Path) -> None:
    record(Path("runs/compare-images-train"), str(folder / "fold1/train"), "plan.json")
    assert default_run("compare-images", "fold2/train", unnamed="") == Path("runs/compare-images-fold2-train")
    record(Path("runs/digits"), "digits")
    assert run_folder("images", "digits", None) == Path("runs/digits")
    assert run_folder("images", "hf:a/b", None) == Path("runs/b")
    record(Path("runs/b"), "hf:a/b")
    assert run_folder("images", "hf:a/b", None) == Path("runs/b")


@pytest.mark.parametrize("name", ["scans.csv", "scans.TSV", "scans.tar", "scans.txt", "scans.npz"])
def test_of_a_file_is_without_its_ending(name: str, folder: Path) -> None:
    (folder / name).touch()
    suffix = ":label=grade" if name == "scans.csv" else ""
    assert run_folder("images", f"{name}{suffix}", None) == Path("runs/scans")
    assert run_folder("images", "a.v1.csv", "simclr") == Path("runs/a.v1-simclr")
    former = record(Path("runs") / name, str(folder / name) + suffix)
    assert run_folder("images", f"{name}{suffix}", None) == (former if name != "scans.npz" else Path("runs/scans"))
    record(Path("runs/scans"), str(folder / "a/images"))
    assert run_folder("images", "b/scans.csv", None) == Path("runs/b-scans")


def test_a_folder_that_holds_something_else_is_left_to_the_command(folder: Path) -> None:
    Path("runs/train").mkdir(parents=True)
    Path("runs/train/config.json").write_text("[")
    assert run_folder("images", "fold1/train", None) == Path("runs/train")
