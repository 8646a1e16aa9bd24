"""The chain on a real model: fine-tune with and without the matrix term, held-out likelihood, score, diagnose.

    MATRIX_SSL_DATA=… python -m benchmarks.experiments.llm_real --model FOLDER     (about two hours of one core)
    MATRIX_SSL_DATA=… python -m benchmarks.experiments.llm_real --quick            (a tiny model: whether it runs)

FOLDER holds SmolLM2-135M with its tokenizer. The data are GSM8K's problems of two steps that are short, the plan is in
LOG.md ("a real model, fixed before its first run"). Every arm fine-tunes all weights on the same problems in the same
order with as many steps: cross-entropy, and with the matrix term, closed or top 16. The learning rate of an arm is the
best of one grid by the cross-entropy of held-out training problems, on a seed that is not reported. Each stage is a
command of matrix-ssl, called in this process.

One job after another; every job leaves a row in ``--work``, the same command goes on, and a stop loses one job. After
every seed ``benchmarks/results/llm_real.json`` has all seeds that are complete;
``python -m benchmarks.pages.llm_real_page`` writes them into ``docs/results/llm-evidence.md``.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import harness
from benchmarks.experiments.llm_arms import claim
from benchmarks.experiments.llm_evidence import HELD_OUT, without_notes
from benchmarks.pages.llm_real_page import ARMS, PLAIN, chosen_rates, complete_seeds
from matrix_ssl.cli import main as cli
from matrix_ssl.errors import DataError
from matrix_ssl.llm.data.question_files import read_rows
from matrix_ssl.llm.finetune.settings import MODEL
from matrix_ssl.llm.finetune.settings import RESULT as RESULT_OF_RUN
from matrix_ssl.llm.tiny import tiny_llama, tiny_tokenizer
from matrix_ssl.runs.files import read_json, write_json, write_text

SETTINGS = {
    PLAIN: ("objective.weight=0",),
    "closed": ("objective.weight=1", "objective.form=closed"),
    "top": ("objective.weight=1", "objective.form=top", "objective.top=16"),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Everything that decides a number."""

    steps: int = 2  # sentences of an answer, one calculation each, before its number
    characters: int = 400  # of question and answer together, at most
    problems: int = 200  # that a seed learns, once each
    held_out: int = 100  # training problems that choose the learning rates
    test: int = 1000  # test problems at most, for the likelihood
    scored: int = 100  # the first of them, to be answered
    batch: int = 4
    rates: tuple[float, ...] = (1.5e-5, 3e-5, 6e-5, 1.2e-4)
    tuning_seeds: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    max_new_tokens: int = 96
    diagnosed: int = 8192  # tokens


QUICK = Settings(
    problems=8, held_out=4, test=4, scored=2, rates=(1e-3, 2e-3), seeds=(0, 1), max_new_tokens=4, diagnosed=600
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Folder of SmolLM2-135M.")
    parser.add_argument("--quick", action="store_true", help="Few problems and a tiny model: whether it runs.")
    parser.add_argument("--work", type=Path, help="Folder of what is done  [default: runs/llm_real, or …_quick].")
    parser.add_argument("--out", type=Path, help="The JSON file  [default: benchmarks/results/llm_real.json].")
    arguments = parser.parse_args()
    if not arguments.quick and arguments.model is None:
        parser.error("--model is required without --quick.")
    torch.set_num_threads(1)
    work = arguments.work or harness.ROOT / "runs" / f"llm_real{'_quick' * arguments.quick}"
    settings = QUICK if arguments.quick else Settings()
    experiment = Experiment(settings, arguments.model or work / "tiny", work)
    if arguments.quick:
        experiment.make_tiny_model()
    experiment.run(arguments.out or (work if arguments.quick else harness.RESULTS) / "llm_real.json")


class Experiment:
    """The jobs, in a folder: what lies there is not computed again."""

    def __init__(self, settings: Settings, model: Path, work: Path):
        """Takes the folder and writes the data.

        Raises:
            DataError: MATRIX_SSL_DATA is not set, or a file is missing.
            RunFolderError: the folder holds results of other settings.
        """
        self.settings, self.model, self.work = settings, model, work
        self.pool, self.held_out, test, self.sha256 = problems(settings)
        claim(work, {"settings": dataclasses.asdict(settings), "model": model.name, "data_sha256": self.sha256})
        self.counts = {"pool": len(self.pool), "held_out": len(self.held_out), "test": len(test)}
        write_lines(work / "held_out.jsonl", self.held_out)
        write_lines(work / "test.jsonl", test)
        write_text(work / "test.txt", "\n\n".join(f"{row['question']}\n{row['answer']}" for row in test))

    def make_tiny_model(self) -> None:
        """A model for the quick run."""
        if not self.model.exists():
            tokenizer = tiny_tokenizer([f"{row['question']}\n{row['answer']}" for row in self.held_out])
            tokenizer.save_pretrained(self.model)
            tiny_llama(tokenizer, length=1024).save_pretrained(self.model)

    def run(self, out: Path) -> None:
        """All jobs; the result is written after every seed."""
        s = self.settings
        for seed, arm, rate in itertools.product(s.tuning_seeds, ARMS, s.rates):
            self.job(seed, arm, rate, judge="held_out")
        base = self.score(self.model, "base")
        rates = chosen_rates(self.rows("trial"))
        for seed in s.seeds:
            for arm in ARMS:
                self.job(seed, arm, rates[arm], judge="test")
            self.write(out, base)

    def job(self, seed: int, arm: str, rate: float, *, judge: str) -> None:
        """Fine-tunes, and measures on the held-out or the test problems, unless there is a row already."""
        kind = "trial" if judge == "held_out" else "result"
        path = self.work / f"{kind}-{seed}-{arm}-{rate:g}.json"
        if path.exists():
            return
        run, data = self.work / "run", self.work / "learn.jsonl"
        write_lines(data, random.Random(seed).sample(self.pool, self.settings.problems))
        shutil.rmtree(run, ignore_errors=True)  # what a job that was stopped has left
        settings = [
            *SETTINGS[arm], f"learning_rate={rate}", f"seed={seed}", "epochs=1", f"batch_size={self.settings.batch}",
            "save_strategy=no", f"eval_on_start={str(arm == PLAIN and seed == self.settings.seeds[0]).lower()}",
        ]  # fmt: skip
        command(
            "finetune", "--model", self.model, "--data", data, "--eval-data", self.work / f"{judge}.jsonl",
            "--template", "plain", "--out", run, *(word for pair in settings for word in ("--set", pair)),
        )  # fmt: skip
        trained = read_json(run / RESULT_OF_RUN)
        row = {
            "seed": seed, "arm": arm, "rate": rate, "judge": judge,
            "before": trained["held_out"]["first"] if trained["held_out"]["first"]["step"] == 0 else None,
            "after": trained["held_out"]["kept"],
            **{key: trained[key] for key in ("steps", "losses", "counts", "parameters", "environment")},
            "seconds": trained["seconds_since_last_start"],
        }  # fmt: skip
        if kind == "result":
            row["score"] = self.score(run, f"{seed}-{arm}")
            if seed == self.settings.seeds[0]:
                row["diagnosis"] = self.diagnose(run, arm)
        write_json(path, row)
        shutil.rmtree(run / MODEL)
        Console().print(f"{path.name}: CE {row['after']['eval_ce']:.4f}", highlight=False)

    def score(self, model: Path, name: str) -> Row:
        """The accuracies on the first test problems."""
        answers = self.work / f"answers-{name}.jsonl"
        if not answers.with_suffix(".json").exists():
            command(
                "score", "--model", model, "--data", self.work / "test.jsonl", "--template", "plain",
                "--limit", self.settings.scored, "--max-new-tokens", self.settings.max_new_tokens, "--out", answers,
            )  # fmt: skip
        result = read_json(answers.with_suffix(".json"))
        return {key: result[key] for key in ("extractions", "questions", "tokens_per_second")}

    def diagnose(self, run: Path, arm: str) -> list[Row]:
        """The measures of every layer, beside those before the fine-tuning."""
        out = self.work / f"diagnosis-{arm}"
        command(
            "diagnose", "--model", run, "--reference", self.model, "--text", self.work / "test.txt",
            "--max-tokens", self.settings.diagnosed, "--out", out,
        )  # fmt: skip
        return list(read_json(out / "diagnose.json")["rows"])

    def rows(self, kind: str) -> list[Row]:
        """All rows of a kind."""
        return [read_json(path) for path in sorted(self.work.glob(f"{kind}-*.json"))]

    def write(self, out: Path, base: Row) -> None:
        """Writes everything that is complete so far."""
        results = complete_seeds(self.rows("result"))
        write_json(out, {
            "command": harness.command(), "settings": dataclasses.asdict(self.settings), "model": self.model.name,
            "objectives": SETTINGS, "data_sha256": self.sha256, "problems": self.counts, "base": base,
            "trials": self.rows("trial"), "rows": results,
        })  # fmt: skip
        Console().print(f"written: {out}, {len({row['seed'] for row in results})} seeds", markup=False)


def command(name: str, *words: object) -> None:
    """A command of ``matrix-ssl llm`` on the CPU."""
    cli.commands.main(["llm", name, "--device", "cpu", *map(str, words)], standalone_mode=False)


def problems(settings: Settings) -> tuple[list[Row], list[Row], list[Row], dict[str, str]]:
    """Short problems of a number of steps: to learn, held out from these, of the test file; and the files' identities.

    The last ``HELD_OUT`` problems of the training file, which ``llm_evidence`` reads, are not learned.
    """
    root = os.environ.get("MATRIX_SSL_DATA")
    if not root:
        raise DataError(
            "MATRIX_SSL_DATA is not set: it is the folder with gsm8k/gsm8k_train.jsonl.gz and …_test.jsonl.gz."
        )
    files = {part: read_rows(str(Path(root) / "gsm8k" / f"gsm8k_{part}.jsonl.gz")) for part in ("train", "test")}
    train, test = (chosen(file.rows, settings) for file in (files["train"], files["test"]))
    last = chosen(files["train"].rows[-HELD_OUT:], settings)
    train = train[: len(train) - len(last)]
    return (
        train[: -settings.held_out], train[-settings.held_out :], test[: settings.test],
        {part: file.sha256 for part, file in files.items()},
    )  # fmt: skip


def chosen(rows: list[Row], settings: Settings) -> list[Row]:
    """The problems that are short and have the number of steps, without notes for a calculator."""
    kept = []
    for row in rows:
        answer = without_notes(row["answer"])
        short = len(row["question"]) + len(answer) <= settings.characters
        if short and len(answer.strip().splitlines()) == settings.steps + 1:  # the last line is the number
            kept.append({"question": row["question"], "answer": answer})
    return kept


def write_lines(path: Path, rows: list[Row]) -> None:
    """Writes problems as JSON lines."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
