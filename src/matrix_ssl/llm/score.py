"""Exact match on GSM8K by lm-evaluation-harness, zero-shot and greedy, with the prompt of the fine-tuning.

Three extractions are scored: ``strict-match`` takes the number after "#### ", ``flexible-extract`` the last number, as
in the harness's own task, and ``answer-is`` the number after the last "The answer is", as MetaMath's models write it.
Numbers are compared as text, without commas, dollar signs and a final full stop: 18.0 is not 18.

Reference: Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168, 2021.
"""

import dataclasses
import importlib.resources
import json
import operator
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor

from matrix_ssl.errors import ConfigError, DataError, import_extra
from matrix_ssl.llm.data.examples import check_end, special_tokens
from matrix_ssl.llm.data.question_files import Rows, exchanges, find_columns
from matrix_ssl.llm.data.templates import (
    STOPS,
    Exchange,
    Extraction,
    TemplateName,
    adds_special_tokens,
    check_template,
    each_text,
    prompt,
)
from matrix_ssl.llm.models import context_length
from matrix_ssl.llm.writing import check_prompts, greedy
from matrix_ssl.runs.files import temporary_folder, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NAME, _MARK = "matrix_ssl_gsm8k", "####"


@dataclass(frozen=True)
class Answered:
    """A question, the model's answer and the correct one."""

    question: str
    prompt: str
    completion: str
    extracted: str  # "[invalid]" if there is no number
    gold: str
    right: bool


@dataclass(frozen=True)
class Score:
    """The accuracy of every extraction, and the answers under the chosen one."""

    extraction: str  # an Extraction, or "exact"
    accuracies: dict[str, float]  # 0 to 1, by extraction
    answers: list[Answered]
    tokens_per_second: float | None = None  # new tokens, over all sequences of a batch together

    def interval(self, extraction: str) -> tuple[float, float]:
        """The 95 % confidence interval of an accuracy for independent questions, accurate even near 0 and 1.

        Reference: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927.
        """
        from scipy.stats import binomtest

        n = len(self.answers)
        interval = binomtest(round(self.accuracies[extraction] * n), n).proportion_ci(0.95, method="wilson")
        return float(interval.low), float(interval.high)

    def to_dict(self) -> dict[str, Any]:
        """Accuracies and their 95 % intervals."""
        rows = {key: {"accuracy": x, "interval": list(self.interval(key))} for key, x in self.accuracies.items()}
        return {**rows[self.extraction], "questions": len(self.answers), "extraction": self.extraction,
                "extractions": rows, "tokens_per_second": self.tokens_per_second}  # fmt: skip


def default_extraction(template: TemplateName) -> Extraction:
    """How models trained with the template mark their answer: MetaMath's "The answer is", or GSM8K's "####"."""
    return "answer-is" if template == "metamath" else "strict-match"


def score_model(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Rows, *,
    template: TemplateName, columns: tuple[str, ...] = (), limit: int | None = None, batch_size: int = 16,
    max_new_tokens: int = 512, extraction: Extraction | None = None,
) -> Score:  # fmt: skip
    """Scores a causal model on the first ``limit`` questions, whose answers are a number or end in "####" and one."""
    check_template(template, tokenizer)
    end = check_end(tokenizer)
    docs = make_docs(exchanges(rows, find_columns(rows, columns))[:limit], template=template, tokenizer=tokenizer)
    special = adds_special_tokens(template)
    prompts = tokenizer([doc["prompt"] for doc in docs], add_special_tokens=special)
    check_prompts(model, prompts["input_ids"], max_new_tokens)
    extraction = extraction or default_extraction(template)
    with greedy(model, end):
        writer = _writer(model, tokenizer, batch_size=batch_size, max_length=context_length(model), special=special)
        score = score_with(writer, docs, stops=STOPS[template], max_new_tokens=max_new_tokens, extraction=extraction)
    written = tokenizer([answer.completion for answer in score.answers], add_special_tokens=False)["input_ids"]
    return dataclasses.replace(score, tokens_per_second=sum(map(len, written)) / writer.seconds)


def _writer(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, batch_size: int, max_length: int | None,
    special: bool,
) -> Any:  # fmt: skip
    """The harness's model; prompts have the tokens of training, without an end token that the tokenizer may add."""
    import_extra("lm_eval", extra="llm")
    from lm_eval.models.huggingface import HFLM

    ending = len(special_tokens(tokenizer)[1]) if special else 0

    class Writer(HFLM):
        seconds = 0.0  # of generation, without what the harness does before and after

        def generate_until(self, *args: Any, **options: Any) -> list[str]:
            started = time.monotonic()
            texts: list[str] = super().generate_until(*args, **options)  # sorted by length, the longest first
            self.seconds += time.monotonic() - started
            return texts

        def tok_encode(self, string: str, *args: Any, **options: Any) -> list[int]:
            ids: list[int] = super().tok_encode(string, *args, **options)
            return ids[: len(ids) - ending]

        def tok_batch_encode(self, strings: list[str], *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
            ids, mask = super().tok_batch_encode(strings, *args, **options)  # padded on the left
            return ids[:, : ids.shape[1] - ending], mask[:, : mask.shape[1] - ending]

    # None: the tokenizer puts its own first token before a prompt, as in training
    return Writer(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=None if special else False,
        max_length=max_length, trust_remote_code=False,
    )  # fmt: skip


def score_with(
    writer: Any, docs: Sequence[dict[str, str]], *, stops: Sequence[str], max_new_tokens: int, extraction: Extraction
) -> Score:
    """``score_model`` for any ``lm_eval.api.model.LM`` and the docs of ``make_docs``; ``stops`` end an answer."""
    if extraction not in get_args(Extraction):
        raise ConfigError(f"extraction={extraction!r} is unknown: choose one of {', '.join(get_args(Extraction))}.")
    lm_eval = import_extra("lm_eval", extra="llm")
    from lm_eval.tasks import TaskManager

    with temporary_folder() as folder:
        file = folder / "questions.jsonl"
        file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
        task = read_task() | {"dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder)}}
        task["generation_kwargs"] |= {"until": list(stops), "max_gen_toks": max_new_tokens}
        tasks = TaskManager(include_defaults=False).load([task])  # reading the harness's own tasks takes time
        output = lm_eval.evaluate(writer, tasks, bootstrap_iters=0, log_samples=True)  # sets no seeds, calls no git
    accuracies = {name: float(output["results"][_NAME][f"exact_match,{name}"]) for name in get_args(Extraction)}
    chosen = (sample for sample in output["samples"][_NAME] if sample["filter"] == extraction)
    samples = sorted(chosen, key=operator.itemgetter("doc_id"))
    answers = [
        Answered(
            doc["question"], doc["prompt"], completion=sample["resps"][0][0], extracted=sample["filtered_resps"][0],
            gold=doc["answer"], right=bool(sample["exact_match"]),
        )
        for doc, sample in zip(docs, samples, strict=True)
    ]  # fmt: skip
    return Score(extraction, accuracies, answers)


def make_docs(
    questions: Sequence[Exchange], *, template: TemplateName, tokenizer: "PreTrainedTokenizerBase"
) -> list[dict[str, str]]:
    """The rows that the task file reads: question, prompt, and the correct number as text."""
    prompts = each_text(prompt, questions, template, tokenizer)
    return [
        {"question": asked.asked, "prompt": text, "answer": _gold(asked, number)}
        for number, (asked, text) in enumerate(zip(questions, prompts, strict=True), 1)
    ]


def read_task() -> dict[str, Any]:
    """The packaged task of the harness, without its data."""
    import yaml

    return yaml.safe_load(importlib.resources.files("matrix_ssl.llm").joinpath("tasks", "gsm8k.yaml").read_bytes())


def write_answers(path: Path, score: Score) -> None:
    """Writes one JSON line per question."""
    write_text(path, "".join(json.dumps(vars(answer), ensure_ascii=False) + "\n" for answer in score.answers))


def _gold(question: Exchange, number: int) -> str:
    if not re.fullmatch(r"\S*\d\S*", gold := question.answer.rpartition(_MARK)[2].strip()):
        raise DataError(
            f"The answer to question {number} ends in {gold[-40:]!r}, not in a number after {_MARK}: answers of other "
            f"kinds are scored by --task exact."
        )
    return gold
