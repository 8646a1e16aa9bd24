"""A tiny model and a few questions, in files."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with its tokenizer."""
    from tests.support import llm_toys  # needs transformers, which other tests here do not

    return llm_toys.save_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 sums, as JSON lines."""
    from tests.support import llm_toys

    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in llm_toys.questions(24)), "utf-8")
    return path
