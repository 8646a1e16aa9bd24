"""Does matrix cross-entropy make a language model answer better? Five arms of one fine-tuning, ten seeds.

    python -m benchmarks.experiments.llm_arms            (80 minutes of one core; the same command again goes on)
    python -m benchmarks.experiments.llm_arms --quick    (seconds: whether it runs, no numbers of use)

Every seed has its own small Llama, pre-trained on arithmetic in many words (``llm_problems.py``). All arms of a seed
fine-tune a copy of it on the same word problems in the same order with as many steps: cross-entropy; with the matrix
term, closed or top 16; cross-entropy at twice its learning rate; cross-entropy with label smoothing. The learning rate
of an arm is the best of one grid on problems held out from those of seeds that are not reported; "twice the rate" takes
twice that of cross-entropy and is not tuned. The test problems are read once for each result.

Every model, trial and result is a file of its own in ``--work``. Several processes may run the command at once: a seed
belongs to the one that locks its folder. Results go to ``benchmarks/results/llm_arms.json`` and to
``docs/results/llm-arms.md``; of a quick run, to the folder alone.
"""

import argparse
import copy
import dataclasses
import importlib.metadata
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor
from torch.nn import functional as F

from benchmarks.experiments import llm_problems
from benchmarks.harness import RESULTS, ROOT, command
from benchmarks.pages.llm_arms_page import PLAIN, chosen_rates, publish, section, summarise_arms
from matrix_ssl.errors import RunFolderError
from matrix_ssl.llm import MatrixCrossEntropyTerms, Objective, matrix_cross_entropy_terms
from matrix_ssl.llm.data.examples import IGNORED
from matrix_ssl.llm.tiny import tiny_llama
from matrix_ssl.matrix import effective_rank
from matrix_ssl.runs.environment import environment
from matrix_ssl.runs.files import read_json, write_atomically, write_json
from matrix_ssl.runs.folder import CONFIG, lock

RESULT = "llm_arms.json"
PAUSE = 10  # seconds between looks at what other processes do


@dataclass(frozen=True)
class Arm:
    """A loss, and whose tuned learning rate it takes, how many times."""

    objective: Objective
    smoothing: float = 0.0  # of the labels; by PyTorch's cross-entropy, as the package has none
    rate_of: str = ""  # another arm; none: its own
    times: float = 1.0


CROSS_ENTROPY = Objective(weight=0.0, chunk=4096)  # a step at a time; the matrix term is measured and weighs nothing
ARMS = {
    PLAIN: Arm(CROSS_ENTROPY),
    "closed": Arm(dataclasses.replace(CROSS_ENTROPY, weight=1.0, form="closed")),
    "top": Arm(dataclasses.replace(CROSS_ENTROPY, weight=1.0, form="top", top=16)),
    "twice": Arm(CROSS_ENTROPY, rate_of=PLAIN, times=2.0),
    "smoothing": Arm(CROSS_ENTROPY, smoothing=0.1),
}
TUNED = [name for name, arm in ARMS.items() if not arm.rate_of]


@dataclass(frozen=True)
class Settings:
    """Everything that decides a number."""

    d: int = 64
    layers: int = 3
    heads: int = 4
    pretraining_steps: int = 1200
    pretraining_rate: float = 3e-3
    pretraining_batch: int = 48  # windows
    window: int = 64  # tokens
    steps: int = 300  # of a fine-tuning
    batch: int = 64  # problems
    problems: int = 1000  # to learn from
    held_out: int = 1000  # more of the same draw, for the learning rates
    test: int = 2000  # the same ones for all seeds
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
    tuning_seeds: tuple[int, ...] = (100, 101, 102)
    seeds: tuple[int, ...] = tuple(range(10))


QUICK = Settings(
    d=16, layers=1, heads=2, pretraining_steps=2, pretraining_batch=8, window=24, steps=2, batch=8, problems=16,
    held_out=8, test=8, rates=(1e-3, 2e-3), tuning_seeds=(100,), seeds=(0,),
)  # fmt: skip


def main() -> None:
    experiment, quick = open_experiment(str(__doc__))
    share(experiment.settings.tuning_seeds, experiment.folder, experiment.tune)
    share(experiment.settings.seeds, experiment.folder, experiment.report)
    result = experiment.result()
    write_json((experiment.work if quick else RESULTS) / RESULT, {"command": command(), **result})
    if not quick:
        publish(result, ROOT / "docs" / "results" / "llm-arms.md")
    Console().print(Markdown(section(result)))


def open_experiment(description: str) -> tuple["Experiment", bool]:
    """What the command line asks for, and whether it is the quick one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and a tiny model: whether it runs")
    parser.add_argument("--work", type=Path, help="what is done already  [default: runs/llm_arms, or …_quick]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = arguments.work or ROOT / "runs" / f"llm_arms{'_quick' * arguments.quick}"
    return Experiment(QUICK if arguments.quick else Settings(), work), arguments.quick


def share(seeds: Sequence[int], folder: Callable[[int], Path], do: Callable[[int], None]) -> None:
    """Does every seed that no other process holds, and then waits until those are done, or takes them over."""
    waiting = list(seeds)
    while waiting:
        for seed in tuple(waiting):
            with ExitStack() as stack:
                try:
                    stack.enter_context(lock(folder(seed)))
                except RunFolderError:  # another process has it
                    continue
                do(seed)
                waiting.remove(seed)
        if waiting:
            time.sleep(PAUSE)


def claim(work: Path, description: dict[str, Any]) -> None:
    """Makes a folder for what is described.

    Raises:
        RunFolderError: it is for something else.
    """
    work.mkdir(parents=True, exist_ok=True)
    if not (work / CONFIG).exists():
        write_json(work / CONFIG, description)
    if read_json(work / CONFIG) != json.loads(json.dumps(description)):
        raise RunFolderError(f"{work} holds results of other settings: choose another --work.")


class Experiment:
    """The stages, in a folder: what lies there is not computed again."""

    def __init__(self, settings: Settings, work: Path):
        """Takes the folder.

        Raises:
            RunFolderError: it holds results of other settings.
        """
        self.settings, self.work = settings, work
        self.words = llm_problems.tokenizer()
        self.mark = self.words.convert_tokens_to_ids(llm_problems.MARK)
        exam = llm_problems.problems(settings.test, seed="test")
        self.test = llm_problems.tokens(exam, self.words)
        self.questions = frozenset(llm_problems.question(row) for row in exam)
        versions = {name: importlib.metadata.version(name) for name in ("transformers", "tokenizers")}
        self.environment = (
            environment(device="cpu", device_name="cpu", threads=torch.get_num_threads(), processes=1) | versions
        )
        claim(work, {"settings": dataclasses.asdict(settings), "arms": arms_as_json()})

    def folder(self, seed: int) -> Path:
        """Where the model and the results of a seed lie."""
        return self.work / f"seed-{seed}"

    def path(self, seed: int, arm: str, rate: float) -> Path:
        """The file of a trial or a result."""
        return self.folder(seed) / f"{arm}-{rate:g}.json"

    def tune(self, seed: int) -> None:
        """All trials of a seed that is not reported; the test problems are not read."""
        model, problems = self.pretrained(seed), self.learned_from(seed)
        for name, rate in itertools.product(TUNED, self.settings.rates):
            self.run(model, problems, problems[self.settings.problems :], name, ARMS[name], rate=rate, seed=seed)

    def report(self, seed: int) -> None:
        """All arms of a seed, each measured once on the test problems."""
        model, problems = self.pretrained(seed), self.learned_from(seed)
        for name, rate in self.rates().items():
            self.run(model, problems, self.test, name, ARMS[name], rate=rate, seed=seed)

    def learned_from(self, seed: int) -> Tensor:
        """The problems of a seed, those to learn from and then those held out; none is a test problem."""
        n = self.settings.problems + self.settings.held_out
        return llm_problems.tokens(llm_problems.problems(n, seed=seed, without=self.questions), self.words)

    def pretrained(self, seed: int) -> Any:
        """The model with which all arms of a seed begin."""
        s, path, about = self.settings, self.folder(seed) / "model.safetensors", self.folder(seed) / "model.json"
        model = tiny_llama(self.words, d=s.d, layers=s.layers, heads=s.heads, length=64, seed=seed)
        if about.exists():
            model.load_state_dict(safetensors.torch.load_file(path))
            return model
        batches = llm_problems.windows(seed, self.words, batch=s.pretraining_batch, length=s.window)
        found = train(model, batches, ARMS[PLAIN], steps=s.pretraining_steps, peak=s.pretraining_rate, given=0)
        content = safetensors.torch.save(model.state_dict())
        write_atomically(path, lambda file: file.write(content))
        parameters = sum(p.numel() for p in model.parameters())
        self.write(about, {"seed": seed, "parameters": parameters, **found, "head": structure(model)})
        return model

    def run(self, model: Any, problems: Tensor, judge: Tensor, name: str, arm: Arm, *, rate: float, seed: int) -> None:
        """Fine-tunes a copy and measures it on the problems ``judge``, unless a file of that name has it already."""
        path = self.path(seed, name, rate)
        if path.exists():
            return
        s, tuned = self.settings, copy.deepcopy(model)
        batches = shuffled(problems[: s.problems], s.batch, seed)
        found = train(tuned, batches, arm, steps=s.steps, peak=rate, given=llm_problems.PROMPT)
        self.write(path, {"seed": seed, "arm": name, "rate": rate, **found, **measure(tuned, judge, self.mark)})

    def write(self, path: Path, row: dict[str, Any]) -> None:
        """Writes a row with the commit that made it, and says so."""
        write_json(path, row | {"commit": self.environment["commit"]})
        score = f"{100 * row['accuracy']:.1f} %, CE {row['ce']:.4f}" if "accuracy" in row else f"loss {row['loss']:.4f}"
        Console().print(f"{path.relative_to(self.work)}: {score}, {row['seconds']:.0f} s", highlight=False)

    def rates(self) -> dict[str, float]:
        """The learning rate of every arm, from the trials."""
        chosen = chosen_rates(self.trials())
        return {name: arm.times * chosen[arm.rate_of or name] for name, arm in ARMS.items()}

    def trials(self) -> list[dict[str, Any]]:
        """All trials."""
        cases = itertools.product(self.settings.tuning_seeds, TUNED, self.settings.rates)
        return [read_json(self.path(*case)) for case in cases]

    def result(self) -> dict[str, Any]:
        """Everything that was found, with the environment."""
        rates, seeds = self.rates().items(), self.settings.seeds
        rows = [read_json(self.path(seed, arm, rate)) for seed in seeds for arm, rate in rates]
        models = [read_json(self.folder(seed) / "model.json") for seed in seeds]
        return {
            "settings": dataclasses.asdict(self.settings),
            "objectives": arms_as_json(),
            "environment": self.environment,
            "arms": summarise_arms(rows),
            "trials": self.trials(),
            "models": models,
            "rows": rows,
        }


def arms_as_json() -> dict[str, Any]:
    """The arms with the names of what they hold."""
    return {name: dataclasses.asdict(arm) for name, arm in ARMS.items()}


def train(model: Any, batches: Iterator[Tensor], arm: Arm, *, steps: int, peak: float, given: int) -> dict[str, float]:
    """Adam without decay of weights: the loss, as the mean over the last tenth of the steps, and CPU seconds."""
    started, losses = time.process_time(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate_at(step, steps, peak)
        value = loss(model, next(batches), arm, given=given)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    last = losses[-max(steps // 10, 1) :]
    return {"loss": sum(last) / len(last), "seconds": time.process_time() - started}


def rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine down to zero."""
    warm = max(steps // 20, 1)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def shuffled(problems: Tensor, batch: int, seed: int) -> Iterator[Tensor]:
    """Full batches of problems without end; every epoch has an order of its own, which the seed alone decides."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(problems), generator=generator)
        yield from (problems[part] for part in order.split(batch) if len(part) == batch)


def loss(model: Any, ids: Tensor, arm: Arm, *, given: int = llm_problems.PROMPT) -> Tensor:
    """The loss of an arm on sequences (n, length) of which the first ``given`` tokens are not learned."""
    if not arm.smoothing:
        return terms(model, ids, arm.objective, given=given).loss
    learned = slice(max(given - 1, 0), -1)
    logits = model.lm_head(model.model(input_ids=ids, use_cache=False).last_hidden_state[:, learned])
    targets = ids[:, max(given, 1) :]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=arm.smoothing)


def terms(
    model: Any, ids: Tensor, objective: Objective, *, given: int = llm_problems.PROMPT
) -> MatrixCrossEntropyTerms:
    """Loss, cross-entropy and matrix cross-entropy by the fused loss of the package."""
    labels = ids.clone()
    labels[:, :given] = IGNORED
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return matrix_cross_entropy_terms(hidden, model.lm_head.weight, labels, objective=objective)


@torch.no_grad()
def measure(model: Any, problems: Tensor, mark: int) -> dict[str, float]:
    """Exact match of the number written greedily behind the mark, and the cross-entropy of the right answers."""
    model.eval()
    prompts, gold = problems[:, : llm_problems.PROMPT], problems[:, -2]  # the last token is the end
    written = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=llm_problems.ANSWER, do_sample=False
    )
    accuracy = right(written[:, llm_problems.PROMPT :], gold, mark).double().mean().item()
    return {"accuracy": accuracy, "ce": terms(model, problems, CROSS_ENTROPY).ce.item()}


def right(written: Tensor, gold: Tensor, mark: int) -> Tensor:
    """Whether the token behind the first mark of each row (n, length) is the right one (n,)."""
    written = F.pad(written, (0, 1), value=-1)  # a mark may be the last token
    marks = written[:, :-1] == mark
    following = written.gather(1, marks.int().argmax(1, keepdim=True) + 1).squeeze(1)
    return marks.any(1) & (following == gold)


def structure(model: Any) -> dict[str, float]:
    """How far the rows of the head are from orthogonal: mean squared cosines, and their effective rank."""
    rows = F.normalize(model.lm_head.weight.detach().double(), dim=1)
    numbers = rows[: llm_problems.LARGEST + 1]
    return {
        "squared_cosine": mean_squared_cosine(rows),
        "squared_cosine_numbers": mean_squared_cosine(numbers),
        "squared_cosine_next_numbers": (numbers[1:] * numbers[:-1]).sum(1).square().mean().item(),
        "effective_rank": effective_rank(rows).item(),
    }


def mean_squared_cosine(rows: Tensor) -> float:
    """Over all pairs of different rows of length one."""
    n = len(rows)
    return (((rows @ rows.mT).square().sum() - n) / (n * (n - 1))).item()


if __name__ == "__main__":
    main()
