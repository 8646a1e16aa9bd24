"""Answers to the problems of MATH, compared as lm-evaluation-harness compares them, zero-shot and greedy.

The answer in a solution is the content of its last \\boxed{} or \\fbox{}. Without braces, as in "\\boxed 5$", that is
the text up to the dollar sign, or else up to white space. If there is no box, the answer is what follows the last "The
answer is" or "####", up to the end of its line. Two answers match if they are equal once the harness has removed what
does not matter: units, spaces, dollar signs, bracket sizes, and the forms of fractions and roots.

Reference: Hendrycks, Burns, Kadavath, Arora, Basart, Tang, Song and Steinhardt, "Measuring Mathematical Problem Solving
With the MATH Dataset", NeurIPS Datasets and Benchmarks 2021, https://arxiv.org/abs/2103.03874.
"""

import re
from typing import TYPE_CHECKING, Any

from matrix_ssl.errors import DataError, import_extra
from matrix_ssl.llm.data.question_files import Rows, exchanges, find_columns
from matrix_ssl.llm.data.templates import TemplateName, check_template, each_text, prompt
from matrix_ssl.llm.score import Answered, Score
from matrix_ssl.llm.writing import Progress, write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MATH = "math"
_INVALID = "[invalid]"
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_WITHOUT_BRACES = re.compile(r"[^$\n]+(?=\$)|[^\s$]+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # or an escaped character, which is not a TeX brace
_MARK = re.compile(r"(?:The answer is:?|####)\s*(.+)")


def score_math(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Rows, *,
    template: TemplateName, columns: tuple[str, ...] = (), limit: int | None = None, batch_size: int = 16,
    max_new_tokens: int = 512, on_progress: Progress = lambda done, total, rate: None,
) -> Score:  # fmt: skip
    """The share of the first ``limit`` problems that the model answers as the file does.

    Raises:
        DataError: a solution in the file has no answer.
    """
    check_template(template, tokenizer)
    asked = exchanges(rows, find_columns(rows, columns))[:limit]
    golds = [_gold(one.answer, number) for number, one in enumerate(asked, 1)]
    prompts = each_text(prompt, asked, template, tokenizer)
    written = write(
        model, tokenizer, prompts, template=template, batch_size=batch_size, max_new_tokens=max_new_tokens,
        on_progress=on_progress,
    )  # fmt: skip
    answers = []
    for one, text, completion, gold in zip(asked, prompts, written.texts, golds, strict=True):
        extracted = answer_of(completion)
        right = extracted is not None and is_equal(extracted, gold)
        answers.append(
            Answered(one.asked, text, completion, _INVALID if extracted is None else extracted, gold,
                     right=right)
        )  # fmt: skip
    accuracy = sum(answer.right for answer in answers) / len(answers)
    return Score(MATH, {MATH: accuracy}, answers, written.tokens / written.seconds)


def answer_of(solution: str) -> str | None:
    """The answer in a solution, or None if there is none."""
    boxed = [_boxed(solution[box.end() :]) for box in _BOX.finditer(solution)]
    if readable := [answer for answer in boxed if answer is not None]:
        return readable[-1]
    marked = _MARK.findall(solution)
    return marked[-1].strip().removesuffix(".") if marked else None


def _boxed(text: str) -> str | None:
    """The content of a box, from the text after its command; None if it is empty or its brace is not closed."""
    if not text.startswith("{"):
        found = _WITHOUT_BRACES.match(text)
        return None if found is None else found[0].strip().removesuffix(".")
    depth = 0
    for brace in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return text[1 : brace.start()]
    return None


def is_equal(answer: str, gold: str) -> bool:
    """Whether the harness considers two answers equal."""
    return bool(_harness().is_equiv(answer, gold))


def _gold(solution: str, number: int) -> str:
    answer = answer_of(solution)
    if answer is None:
        raise DataError(
            f"The answer to problem {number} ends in {solution[-40:]!r}: it needs \\boxed{{}}, or a line with #### and "
            f"the answer."
        )
    return answer


def _harness() -> Any:
    import_extra("lm_eval", extra="llm")
    return import_extra("lm_eval.tasks.hendrycks_math.utils", extra="llm")
