"""GSM8K from its files to a score and a diagnosis, with a tokenizer and a tiny Llama made from scratch: the chain only.

    MATRIX_SSL_DATA=… python -m benchmarks.experiments.llm_gsm8k            (a few minutes on one core)
    MATRIX_SSL_DATA=… python -m benchmarks.experiments.llm_gsm8k --quick    (seconds: whether it runs)

The training is that of ``matrix-ssl llm finetune`` on random weights, the score that of ``matrix-ssl llm score`` by
lm-evaluation-harness, the diagnosis that of ``matrix-ssl llm diagnose`` against the same network before training. So
small a model answers next to nothing right: expected accuracy is near zero, and no loss is compared. The files are
``gsm8k/gsm8k_train.jsonl.gz`` and ``gsm8k/gsm8k_test.jsonl.gz`` in the folder MATRIX_SSL_DATA. Results go to
``benchmarks/results/llm_gsm8k.json`` and to ``docs/results/llm-arms.md``; of a quick run, to the folder alone.
"""

import argparse
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.experiments.llm_arms import claim
from benchmarks.harness import RESULTS, ROOT, command
from benchmarks.pages.tables import fill, table
from matrix_ssl.data.hub import quiet_transformers
from matrix_ssl.errors import DataError
from matrix_ssl.llm import models, score
from matrix_ssl.llm.data.question_files import Rows, read_rows
from matrix_ssl.llm.diagnose.run import DiagnoseSettings, diagnose
from matrix_ssl.llm.finetune import run as finetune
from matrix_ssl.llm.finetune.settings import MODEL, FineTuneSettings
from matrix_ssl.llm.finetune.settings import RESULT as RESULT_OF_RUN
from matrix_ssl.llm.tiny import tiny_llama, tiny_tokenizer
from matrix_ssl.report.diagnosis import MEASURES, layer_name
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.environment import versions
from matrix_ssl.runs.files import read_json, write_atomically, write_json
from matrix_ssl.runs.folder import ENVIRONMENT, lock
from matrix_ssl.runs.folder import claim as claim_run

RESULT = "llm_gsm8k.json"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a number."""

    vocabulary: int = 1024
    d: int = 128
    layers: int = 4
    heads: int = 4
    problems: int = 2000  # to learn from: the first of the training file
    test: int = 100  # the first of the test file
    epochs: float = 4.0
    batch_size: int = 16
    learning_rate: float = 2e-3
    max_length: int = 512  # tokens of a sequence
    max_new_tokens: int = 200
    diagnosed: int = 20_000  # tokens of the test problems at most


QUICK = Settings(
    vocabulary=300, d=32, layers=2, heads=2, problems=16, test=2, epochs=1.0, batch_size=8, max_length=256,
    max_new_tokens=8, diagnosed=600,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few problems and a tiny model: whether it runs")
    parser.add_argument("--problems", type=int, help="to learn from")
    parser.add_argument("--test", type=int, help="problems to answer")
    parser.add_argument("--work", type=Path, help="folder of the run  [default: runs/llm_gsm8k, or …_quick]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = {key: getattr(arguments, key) for key in ("problems", "test") if getattr(arguments, key)}
    settings = dataclasses.replace(QUICK if arguments.quick else Settings(), **given)
    work = arguments.work or ROOT / "runs" / f"llm_gsm8k{'_quick' * arguments.quick}"
    with quiet_transformers():
        result = chain(settings, *gsm8k(settings), work)
    write_json((work if arguments.quick else RESULTS) / RESULT, {"command": command(), **result})
    if not arguments.quick:
        fill(ROOT / "docs" / "results" / "llm-arms.md", "gsm8k", section(result))
    Console().print(Markdown(section(result)))


def gsm8k(settings: Settings) -> tuple[Rows, Rows]:
    """The first problems to learn and to answer, from the files.

    Raises:
        DataError: MATRIX_SSL_DATA is not set, or a file is missing.
    """
    root = os.environ.get("MATRIX_SSL_DATA")
    if not root:
        raise DataError(
            "MATRIX_SSL_DATA is not set: it is the folder with gsm8k/gsm8k_train.jsonl.gz and …_test.jsonl.gz."
        )
    learn, answer = (read_rows(str(Path(root) / "gsm8k" / f"gsm8k_{part}.jsonl.gz")) for part in ("train", "test"))
    return (
        dataclasses.replace(learn, rows=learn.rows[: settings.problems]),
        dataclasses.replace(answer, rows=answer.rows[: settings.test]),
    )


def chain(settings: Settings, learn: Rows, answer: Rows, work: Path) -> dict[str, Any]:
    """Makes tokenizer and model, trains, scores both, diagnoses; goes on with a training that was stopped."""
    claim(work, {"settings": dataclasses.asdict(settings)})
    base, run = work / "base", work / "run"
    base.mkdir(exist_ok=True)
    tokenizer = tiny_tokenizer([text(row) for row in learn.rows], vocabulary=settings.vocabulary)
    tokenizer.save_pretrained(base)
    network = tiny_llama(
        tokenizer, d=settings.d, layers=settings.layers, heads=settings.heads,
        length=settings.max_length + settings.max_new_tokens,
    )  # fmt: skip
    network.save_pretrained(base)
    lines = "".join(json.dumps(row) + "\n" for row in learn.rows)
    write_atomically(work / "learn.jsonl", lambda file: file.write(lines.encode()))
    exam = "\n\n".join(map(text, answer.rows))
    write_atomically(work / "exam.txt", lambda file: file.write(exam.encode()))
    prepared = finetune.prepare(
        FineTuneSettings(
            model=str(base), data=str(work / "learn.jsonl"), template="plain", epochs=settings.epochs,
            batch_size=settings.batch_size, learning_rate=settings.learning_rate, max_length=settings.max_length,
        ),
        run, device=CPU,
    )  # fmt: skip
    with lock(run):
        claim_run(run, prepared.description())
        if not (run / RESULT_OF_RUN).exists():
            write_json(run / ENVIRONMENT, devices.environment(CPU) | versions(finetune.PACKAGES))
            finetune.run(prepared, run, display=Display())
    trained = read_json(run / RESULT_OF_RUN)
    scores = {name: scored(place, answer, settings) for name, place in (("untrained", base), ("trained", run / MODEL))}
    found = diagnose(
        DiagnoseSettings(model=str(run), text=work / "exam.txt", reference=str(base), max_tokens=settings.diagnosed),
        work / "diagnosis", device=CPU,
    )  # fmt: skip
    return {
        "settings": dataclasses.asdict(settings),
        "data_sha256": {"train": learn.sha256, "test": answer.sha256},
        "environment": trained["environment"],
        "training": {
            key: trained[key] for key in ("steps", "parameters", "counts", "losses", "seconds_since_last_start")
        },
        "scores": scores,
        "diagnosis": {key: found[key] for key in ("tokens", "windows", "rows")},
    }


def text(row: dict[str, Any]) -> str:
    """A problem with its answer, as one text."""
    return f"{row['question']}\n{row['answer']}"


def scored(place: Path, answer: Rows, settings: Settings) -> dict[str, Any]:
    """Accuracies by the harness, and the first answer."""
    network, tokenizer = models.open_model(str(place)), models.open_tokenizer(str(place))
    found = score.score_model(network, tokenizer, answer, template="plain", max_new_tokens=settings.max_new_tokens)
    first = found.answers[0]
    return found.to_dict() | {"first": {"completion": first.completion, "gold": first.gold}}


def number(value: float | None) -> str:
    """Four digits; a dash for a measure that a layer does not have."""
    return "–" if value is None else f"{value:.4g}"


def section(result: dict[str, Any]) -> str:
    """The numbers, for the page."""
    e, s, t = result["environment"], result["settings"], result["training"]
    first, last = t["losses"]["first"], t["losses"]["last"]
    head = ["model", "strict-match, %", "flexible-extract, %"]
    lines = [
        [name, *(percent(row["extractions"][way]) for way in ("strict-match", "flexible-extract"))]
        for name, row in result["scores"].items()
    ]
    measures = {key: name for key, name in MEASURES.items() if key in result["diagnosis"]["rows"][0]}
    layers = [
        [
            layer_name(row["layer"]),
            *(number(values[key]) for key in measures for values in (row["reference"], row)),
        ]
        for row in result["diagnosis"]["rows"]
    ]
    names = [f"{measure}, {which}" for measure in measures.values() for which in ("untrained", "trained")]
    return "\n".join([
        f"{t['parameters']:,} parameters, {s['problems']} training problems, {t['steps']} steps with batch size "
        f"{s['batch_size']}, CE + MCE closed; cross-entropy {first['ce']:.2f} at the first step, {last['ce']:.2f} at "
        f"the last. {t['seconds_since_last_start']:.0f} seconds of training on an {e['processor']}, one thread, "
        f"PyTorch {e['torch']}, transformers {e['transformers']}, commit {e['commit']}.\n",
        f"The first {s['test']} test problems, with Wilson's 95 % intervals:\n",
        table(head, lines),
        f"Diagnosis on {result['diagnosis']['tokens']:,} tokens of the test problems:\n",
        table(["layer", *names], layers),
    ])  # fmt: skip


def percent(row: dict[str, Any]) -> str:
    """Accuracy and interval."""
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


if __name__ == "__main__":
    main()
