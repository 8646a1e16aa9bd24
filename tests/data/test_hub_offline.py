"""Without a network the libraries of Hugging Face fail at once, with one sentence, and caches still serve."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from matrix_ssl.data.kinds import huggingface
from matrix_ssl.errors import CheckpointError, DataError
from matrix_ssl.llm.data.question_files import read_rows
from matrix_ssl.llm.models import open_body, open_model, open_tokenizer
from tests.support import llm_toys

constants = pytest.importorskip("huggingface_hub.constants")
pytest.importorskip("datasets")

OPENERS: dict[str, tuple[Callable[[str], Any], type[Exception]]] = {
    "tokenizer": (open_tokenizer, CheckpointError),
    "model": (open_model, CheckpointError),
    "body": (open_body, CheckpointError),
    "images": (huggingface.load_splits, DataError),
    "questions": (lambda name: read_rows(f"hf:{name}"), DataError),
}


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The connections that were tried, without a network, with empty caches."""
    import datasets

    tried: list[Any] = []

    def refuse(*place: Any, **_: Any) -> None:
        tried.append(place)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("matrix_ssl.data.hub.getproxies", dict)
    return tried


@pytest.mark.parametrize("what", OPENERS)
def test_a_single_attempt_and_one_sentence(attempts: list[Any], what: str) -> None:
    opener, error = OPENERS[what]
    with pytest.raises(error) as raised:
        opener("nobody/nothing")
    assert len(attempts) == 1 and attempts[0][0] == "huggingface.co"
    text = str(raised.value)
    assert "nobody/nothing is not in the local cache, and the hub, https://huggingface.co, cannot be reached" in text
    assert "\n" not in text and text.endswith("download it on a machine with network access.")
    assert constants.HF_HUB_OFFLINE is False


def test_a_local_folder_is_no_reason_to_look(attempts: list[Any], tmp_path: Path) -> None:
    llm_toys.tokenizer().save_pretrained(tmp_path / "m")
    open_tokenizer(str(tmp_path / "m"))
    assert attempts == []


def test_the_setting_that_forbids_the_hub_is_named(attempts: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"^nothing is not in the local cache, and HF_HUB_OFFLINE keeps [^\n]*$"):
        open_tokenizer("nothing")
    assert attempts == []


def test_a_file_is_no_folder_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"model\.gguf is not a folder: --model takes the folder of a model"):
        open_tokenizer(str(tmp_path / "model.gguf"))
