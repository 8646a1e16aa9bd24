"""Exact match of whole answers that are not numbers, zero-shot and greedy, with the prompt of the fine-tuning.

Two texts match if they are equal up to white space, letter case and a trailing full stop.
"""

from typing import TYPE_CHECKING

from matrix_ssl.llm.data.question_files import Rows, exchanges, find_columns
from matrix_ssl.llm.data.templates import TemplateName, check_template, each_text, prompt
from matrix_ssl.llm.score import Answered, Score
from matrix_ssl.llm.writing import Progress, write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXACT = "exact"


def score_exact(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Rows, *,
    template: TemplateName, columns: tuple[str, ...] = (), limit: int | None = None, batch_size: int = 16,
    max_new_tokens: int = 512, on_progress: Progress = lambda done, total, rate: None,
) -> Score:  # fmt: skip
    """The share of the first ``limit`` questions to which the model gives the file's answer."""
    check_template(template, tokenizer)
    asked = exchanges(rows, find_columns(rows, columns))[:limit]
    prompts = each_text(prompt, asked, template, tokenizer)
    written = write(
        model, tokenizer, prompts, template=template, batch_size=batch_size, max_new_tokens=max_new_tokens,
        on_progress=on_progress,
    )  # fmt: skip
    answers = [
        Answered(one.asked, text, completion, normalised(completion), one.answer,
                 right=normalised(completion) == normalised(one.answer))
        for one, text, completion in zip(asked, prompts, written.texts, strict=True)
    ]  # fmt: skip
    accuracy = sum(answer.right for answer in answers) / len(answers)
    return Score(EXACT, {EXACT: accuracy}, answers, written.tokens / written.seconds)


def normalised(text: str) -> str:
    """A text in the form in which it is compared."""
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()
