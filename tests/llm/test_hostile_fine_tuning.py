"""Fine-tunings with damaged, swapped or foreign files, and secrets among their settings."""

import json
from pathlib import Path

import pytest

from matrix_ssl.errors import CheckpointError, ConfigError

pytest.importorskip("transformers")

from matrix_ssl.llm.finetune.run import newest_checkpoint
from matrix_ssl.llm.finetune.settings import parse_assignments
from matrix_ssl.runs.digests import write_digests


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a fine-tuning with checkpoints of steps 2 and 4."""
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"seed": 0}, "places": {"data": "x"}}))
    for step in (2, 4):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            (folder / name).write_bytes(f"{name} of step {step}".encode())
        write_digests(folder, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "new", "digests.json"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(out: Path, name: str) -> None:
    newest = out / "checkpoints" / "checkpoint-4"
    assert newest_checkpoint(out, print) == (4, str(newest))
    (newest / name).write_bytes(b"cut")
    said: list[str] = []
    assert newest_checkpoint(out, said.append) == (2, str(newest.with_name("checkpoint-2")))
    assert name in said[0] and "checkpoint before" in said[0]


def test_a_checkpoint_of_a_different_run_is_not_used(out: Path) -> None:
    (out / "config.json").write_text(json.dumps({"settings": {"seed": 1}}))
    with pytest.raises(CheckpointError, match="different run"):
        newest_checkpoint(out, print)


def test_a_checkpoint_without_digests_is_not_complete(out: Path) -> None:
    (out / "checkpoints" / "checkpoint-4" / "digests.json").unlink()
    assert newest_checkpoint(out, print)[0] == 2


def test_checkpoints_of_an_earlier_version_are_used(out: Path) -> None:
    for path in out.glob("checkpoints/*/digests.json"):
        path.unlink()
    assert newest_checkpoint(out, print)[0] == 4


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, print) == (0, None)


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token"])
def test_a_token_is_no_setting_and_is_not_shown(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignments([f"{name}=hunter2222"])
    assert "hunter2222" not in str(caught.value) and "HF_TOKEN" in str(caught.value)
