"""A tokenizer, a Llama and sums in words, all made on the spot, for the tests of fine-tuning and scoring."""

import copy
import functools
import os
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

with warnings.catch_warnings():  # what libraries warn of while they are imported is theirs
    warnings.simplefilter("ignore")
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import transformers
    import trl  # noqa: F401

from matrix_ssl.llm.tiny import tiny_llama, tiny_tokenizer

IGNORED = -100


def questions(n: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Sums with their answers as GSM8K writes them."""
    numbers = random.Random(seed)
    rows = []
    for _ in range(n):
        a, b = numbers.randint(1, 9), numbers.randint(1, 9)
        rows.append(
            {"question": f"Ann has {a} pens and buys {b}. How many?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
        )
    return rows


@functools.cache
def _tokenizer() -> Any:
    return tiny_tokenizer([f"{row['question']}\n{row['answer']}" for row in questions(200)], vocabulary=300)


def tokenizer() -> Any:
    """About 300 tokens, learned from the sums; one of its own for every caller, who may change it."""
    return copy.deepcopy(_tokenizer())


@functools.cache
def _llama() -> Any:
    return tiny_llama(_tokenizer())


def llama() -> Any:
    """A Llama of its own for every caller, always the same."""
    return copy.deepcopy(_llama())


def sequences(n: int = 16, *, seed: int = 0) -> list[dict[str, list[int]]]:
    """Sequences of 6 to 14 tokens, of which parts of very different length are learned."""
    numbers, size = random.Random(seed), len(_tokenizer())
    rows = []
    for i in range(n):
        ids = [numbers.randrange(size) for _ in range(numbers.randint(6, 14))]
        given = 1 + i % 4
        rows.append({"input_ids": ids, "labels": [IGNORED] * given + ids[given:]})
    return rows


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Rows side by side, filled up at the right."""
    longest = max(len(row["input_ids"]) for row in rows)

    def fill(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([fill(row["input_ids"], 0) for row in rows]),
        "labels": torch.tensor([fill(row["labels"], IGNORED) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row["input_ids"]), 0) for row in rows]),
    }


def arguments(folder: Path, **changes: Any) -> Any:
    """Arguments of a short training on the CPU, in the order of the data, by plain gradient descent."""
    values = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "optim": "sgd",
        "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_steps": 2, "logging_steps": 1,
        "save_strategy": "no", "per_device_train_batch_size": 8, "remove_unused_columns": False,
        "train_sampling_strategy": "sequential", "max_grad_norm": 0.0,
    } | changes  # fmt: skip
    return transformers.TrainingArguments(**values)


def weights(model: Any) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def save_llama(folder: Path) -> Path:
    """Writes a tiny Llama and its tokenizer as a folder of a model; returns the folder."""
    llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
