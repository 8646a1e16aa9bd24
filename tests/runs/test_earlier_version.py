"""The run folder of an earlier version, which called images pictures and knew no digest: every command reads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from matrix_ssl.runs.checkpoint import encode, list_checkpoints, read_safetensors
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import read_config
from tests.support.runs import BARE, succeed, tiny

OLD = {"images": "pictures", "training_images": "training_pictures"}


def old(value: Any) -> Any:
    """JSON as the earlier version wrote it: counts by their old names, no digests, and no identity of the run."""
    if isinstance(value, list):
        return [old(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: old(item) for key, item in value.items() if key not in ("digest", "run")}
    return {OLD.get(key, key) if isinstance(item, int) else key: item for key, item in kept.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and evaluated run, with its files in the old form."""
    folder = tmp_path_factory.mktemp("old")
    succeed(folder, tiny("batch_size=256"), before=BARE)
    succeed(folder, ["evaluate", "r", "--protocol", "knn"], before=BARE)
    files = [folder / "r" / name for name in ("config.json", "summary.json", "evaluation/digits/knn.json")]
    for path in files:
        path.write_text(json.dumps(old(json.loads(path.read_text("utf-8")))), "utf-8")
        assert '"pictures"' in path.read_text("utf-8") and "digest" not in path.read_text("utf-8")
    for path in (folder / "r" / "encoder.safetensors", *list_checkpoints(folder / "r")):
        tensors, metadata = read_safetensors(path)
        kept = {key: value for key, value in metadata.items() if key not in ("sha256", "run")}
        if "values" in kept:
            kept["values"] = json.dumps(old(json.loads(kept["values"])))
        path.write_bytes(encode(tensors, kept))
    return folder


def test_counts_have_their_names_of_today(folder: Path) -> None:
    assert read_config(folder / "r").data.images == 1437
    assert read_json(folder / "r" / "summary.json")["data"]["images"] == 1437
    measures = read_json(folder / "r" / "evaluation" / "digits" / "knn.json")["measures"]
    assert measures["knn_20"]["images"] == 360


def test_a_class_called_like_an_old_key_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"classes": {"pictures": {"accuracy": 1.0, "pictures": 3}}}', "utf-8")
    assert read_json(tmp_path / "a.json") == {"classes": {"pictures": {"accuracy": 1.0, "images": 3}}}


def test_the_same_command_says_that_the_run_is_complete(folder: Path) -> None:
    assert "is complete" in succeed(folder, tiny("batch_size=256"), before=BARE).err


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["report", "r"], "r/report.html"),
        (["export", "r", "--out", "x.safetensors"], "x.safetensors"),
        (["embed", "r", "--data", "digits", "--out", "e.npz"], "e.npz"),
        (["evaluate", "r", "--protocol", "knn"], "r/evaluation/digits/knn.json"),
    ],
)
def test_every_command_reads_it(words: list[str], file: str, folder: Path) -> None:
    succeed(folder, words, before=BARE if words[0] == "evaluate" else "")
    assert (folder / file).exists()
