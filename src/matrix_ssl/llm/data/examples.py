"""Exchanges as tokens: a prompt, then the answer and its end token, which are learned."""

import copy
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from matrix_ssl.errors import DataError
from matrix_ssl.llm.data.templates import Exchange, adds_special_tokens, answer, each_text, prompt

if TYPE_CHECKING:
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

IGNORED = -100
_TOGETHER = 1000  # texts per call of the tokenizer


@dataclass(frozen=True)
class Examples:
    """Sequences of tokens, concatenated in one tensor: lists of numbers would take ten times the memory."""

    tokens: Tensor  # (sum of lengths,), int32
    starts: Tensor  # (n + 1,), index of the first token of each sequence, and the end of the last
    prompts: Tensor  # (n,), length of each prompt, which is not learned
    cut: int  # number of truncated sequences
    dropped: int  # number of rows without a token to learn

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = self.tokens[self.starts[index] : self.starts[index + 1]].tolist()
        start = int(self.prompts[index])
        return {"input_ids": ids, "labels": [IGNORED] * start + ids[start:]}

    @property
    def learned(self) -> int:
        """Number of learned tokens."""
        return len(self.tokens) - int(self.prompts.sum())


def make_examples(
    rows: Sequence[Exchange], *, template: str, tokenizer: "PreTrainedTokenizerBase", max_length: int,
    where: Callable[[int], str] = lambda index: f"row {index + 1}",
) -> Examples:  # fmt: skip
    """The tokens of every row. Prompt and answer are encoded separately, so a prompt has the same tokens in scoring.

    Sequences longer than ``max_length`` lose their end, and with it the end token. ``where`` names a row in errors.
    """
    end = check_end(tokenizer)
    tokens, starts, prompts, cut, dropped = array("i"), array("q", [0]), array("q"), 0, 0
    special = adds_special_tokens(template)
    ending = len(special_tokens(tokenizer)[1]) if special else 0  # what the tokenizer appends to a text
    for first in range(0, len(rows), _TOGETHER):
        part = rows[first : first + _TOGETHER]
        names = [where(first + index) for index in range(len(part))]
        prompt_texts, answer_texts = (
            each_text(one, part, template, tokenizer, where=names.__getitem__) for one in (prompt, answer)
        )
        before = tokenizer(prompt_texts, add_special_tokens=special)
        after = tokenizer(answer_texts, add_special_tokens=False)
        ends = _ends_inside(part, template, tokenizer, end)
        for whole, learned, inside in zip(before["input_ids"], after["input_ids"], ends, strict=True):
            start = whole[: len(whole) - ending]
            ids = start + learned if learned.count(end) > inside or learned[-1:] == [end] else [*start, *learned, end]
            if len(start) >= max_length:
                dropped += 1
                continue
            cut += len(ids) > max_length
            tokens.extend(ids[:max_length])
            starts.append(len(tokens))
            prompts.append(len(start))
    if not prompts:
        raise DataError(
            f"All {len(rows)} rows have a prompt of at least max_length={max_length} tokens, so every label would be "
            f"ignored: raise max_length."
        )
    return Examples(
        torch.frombuffer(tokens, dtype=torch.int32), torch.frombuffer(starts, dtype=torch.int64),
        torch.frombuffer(prompts, dtype=torch.int64), cut=cut, dropped=dropped,
    )  # fmt: skip


def check_end(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The end token of a tokenizer; DataError if it has none."""
    if (end := tokenizer.eos_token_id) is None:
        raise DataError(
            "The tokenizer has no end token, so answers would never end: set its eos_token, and save it with "
            "save_pretrained."
        )
    return int(end)


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after a text for a model."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    dressed = tokenizer("a").input_ids
    starts = [i for i in range(len(dressed)) if dressed[i : i + len(plain)] == plain]
    start = starts[0] if starts and plain else 0
    return dressed[:start], dressed[start + len(plain) :]


def _ends_inside(rows: Sequence[Exchange], template: str, tokenizer: "PreTrainedTokenizerBase", end: int) -> list[int]:
    """How often the end token occurs in the text of each answer, which may be about it; a template may add another."""
    if template != "chat":
        return [sys.maxsize] * len(rows)  # these templates add none
    texts = tokenizer([row.answer for row in rows], add_special_tokens=False)
    return [ids.count(end) for ids in texts["input_ids"]]


def collator(tokenizer: "PreTrainedTokenizerBase") -> "DataCollatorForSeq2Seq":
    """Batches examples, padded on the right with a token that is neither attended to nor learned.

    It uses a copy of the tokenizer, which may have no padding token, or pad on the left.
    """
    from transformers import DataCollatorForSeq2Seq

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
