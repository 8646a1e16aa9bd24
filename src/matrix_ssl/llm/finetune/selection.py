"""The rows that a fine-tuning learns and those that it holds out, as tokens, and what may surprise about them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from matrix_ssl.errors import ConfigError
from matrix_ssl.llm.data.examples import Examples, make_examples
from matrix_ssl.llm.data.question_files import Rows, answered_exchanges, find_columns, read_rows, unused_columns
from matrix_ssl.llm.data.templates import Exchange, earlier_answers
from matrix_ssl.llm.finetune.settings import FineTuneSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class HeldOut:
    """The rows that are measured but not learned."""

    examples: Examples
    sha256: str  # of their file, if they have one of their own
    learned_too: int  # of the examples and those that are too long: also among those to learn, question and answer

    @property
    def total(self) -> int:
        """Number of examples and of those that are too long."""
        return len(self.examples) + self.examples.dropped


@dataclass(frozen=True)
class Selection:
    """What a fine-tuning learns, and what it measures."""

    examples: Examples
    repeated: int  # of the examples and those that are too long: repeat an earlier one, question and answer
    held_out: HeldOut | None
    unused: list[str]  # columns, if the settings name none
    earlier: int  # answers in conversations that are not learned because only the last is
    unanswered: int  # conversations that go on after their last answer, also those held out

    @property
    def parts(self) -> list[Examples]:
        """The examples to learn and, if there are any, those to measure."""
        return [self.examples, *([self.held_out.examples] if self.held_out is not None else [])]

    def counts(self) -> dict[str, int]:
        """Numbers of examples and tokens."""
        e = self.examples
        counts = {"examples": len(e), "cut": e.cut, "dropped": e.dropped, "tokens": len(e.tokens),
                  "tokens_learned": e.learned}  # fmt: skip
        if self.held_out is not None:
            others = self.held_out.examples
            counts |= {"held_out": len(others), "held_out_cut": others.cut, "held_out_dropped": others.dropped}
        return counts

    def remarks(self, *, max_length: int) -> list[str]:
        """Sentences about what a user may not expect of the data."""
        sentences, e = [], self.examples
        if self.unused:
            sentences.append(
                f"Columns that are not used: {', '.join(self.unused)}; --columns chooses which are learned."
            )
        if self.earlier:
            sentences.append(
                f"Only the last answer of a conversation is learned, not the {self.earlier} before; set answers=all to "
                f"learn every answer."
            )
        if self.unanswered:
            sentences.append(
                f"{self.unanswered} conversation{'s go' if self.unanswered > 1 else ' goes'} on after the last answer, "
                f"mostly by a question; what follows that answer is left out."
            )
        for part, kind in zip(self.parts, ("", "held-out "), strict=False):
            if part.cut or part.dropped:
                sentences.append(
                    f"max_length={max_length} truncates {part.cut} {kind}sequences and skips {part.dropped} {kind}rows "
                    f"whose answer would be cut off entirely."
                )
        if self.repeated:
            sentences.append(
                f"{self.repeated} of the {len(e) + e.dropped} rows to learn repeat an earlier one, question and answer."
            )
        if self.held_out is not None and self.held_out.learned_too:
            sentences.append(
                f"Warning: {self.held_out.learned_too} of the {self.held_out.total} held-out rows are also among those "
                f"to learn, question and answer, so the held-out loss says less about new ones: remove them from one "
                f"side."
            )
        return sentences


def select(settings: FineTuneSettings, rows: Rows, tokenizer: "PreTrainedTokenizerBase") -> Selection:
    """The rows to learn, and the held-out rows: some of them, or those of another file."""
    found, unanswered = answered_exchanges(rows, find_columns(rows, settings.columns))
    asked = list(enumerate(found))  # with their places, from 0
    kept: list[tuple[int, Exchange]] = []
    name, sha256 = settings.data, ""
    if settings.eval_data:
        others = read_rows(settings.eval_data)
        found, more = answered_exchanges(others, find_columns(others, settings.columns))
        kept, unanswered = list(enumerate(found)), unanswered + more
        name, sha256 = others.name, others.sha256
    elif settings.held_out:
        number = round(settings.held_out * len(asked))
        if not 0 < number < len(asked):
            raise ConfigError(
                f"held_out={settings.held_out:g} of {len(asked)} rows holds out {number}: leave rows on both sides."
            )
        order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        kept, asked = ([asked[i] for i in sorted(some)] for some in (order[:number], order[number:]))
    earlier = 0
    if settings.answers == "all":  # after the split, so that no conversation is on both sides
        asked, kept = _every_answer(asked), _every_answer(kept)
    else:
        earlier = sum(len(earlier_answers(exchange)) for _, exchange in asked)

    def make(some: Sequence[tuple[int, Exchange]], file: str) -> Examples:
        return make_examples(
            [exchange for _, exchange in some], template=settings.template, tokenizer=tokenizer,
            max_length=settings.max_length, where=lambda index: f"{file}, row {some[index][0] + 1}",
        )  # fmt: skip

    learned = {hash(json.dumps(exchange)) for _, exchange in asked}
    held_out = None
    examples, repeated = make(asked, rows.name), len(asked) - len(learned)
    if kept:
        learned_too = sum(hash(json.dumps(exchange)) in learned for _, exchange in kept)
        held_out = HeldOut(make(kept, name), sha256, learned_too)
    unused = [] if settings.columns else unused_columns(rows)
    return Selection(examples, repeated, held_out, unused, earlier, unanswered)


def _every_answer(rows: Sequence[tuple[int, Exchange]]) -> list[tuple[int, Exchange]]:
    return [(place, one) for place, exchange in rows for one in (*earlier_answers(exchange), exchange)]
