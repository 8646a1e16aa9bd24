"""The whole procedure: trains what is missing, evaluates all arms once, and keeps ``worth.json`` up to date."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matrix_ssl import config as configuration
from matrix_ssl.compare.job import has_trained, open_test_part, open_training_part
from matrix_ssl.compare.worth import labels, measuring, training
from matrix_ssl.compare.worth.labels import Budget
from matrix_ssl.compare.worth.measuring import Answers
from matrix_ssl.compare.worth.plan import PRETRAINED, STARTS, Arm, Network, Plan
from matrix_ssl.config import DataConfig, RunConfig
from matrix_ssl.data import Source, has_test_split
from matrix_ssl.data.sources import choose_subset
from matrix_ssl.encoder import initialise_encoder, load_encoder
from matrix_ssl.errors import RunFolderError
from matrix_ssl.evaluate.baselines import Baseline
from matrix_ssl.evaluate.features import RawPixels
from matrix_ssl.evaluate.probes.crossed import crossed_interval
from matrix_ssl.evaluate.trained.classifier import check_splits, score_images
from matrix_ssl.evaluate.unreadable import refuse_many
from matrix_ssl.report.worth.data import RESULTS
from matrix_ssl.report.worth.page import write_worth
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import fingerprint, read_object, write_json
from matrix_ssl.runs.folder import check_claim, check_folder, claim
from matrix_ssl.runs.terminal import redact_values
from matrix_ssl.training.start import start_from

PLAN = "plan.json"
_RUNS = ("base", "adapted")
_MAY_CHANGE = [f"{run}.{key}" for run in _RUNS for key in configuration.MAY_CHANGE]
_PLAN: Any = {"first": PLAN, "configurations": _RUNS, "may_change": _MAY_CHANGE}  # how it is claimed
Say = Callable[[str], None]


@dataclass(frozen=True)
class Images:
    """The images that all arms share."""

    train: Source
    test: Source
    held_out: bool  # whether the test images are a part of a dataset without a test split

    @staticmethod
    def open(plan: Plan, *, data_root: Path | None, download: bool) -> "Images":
        """Opens the images without reading any; ConfigError if they have no labels."""
        data = plan.base.data
        train = open_training_part(data, data_root=data_root, download=download)
        whole = open_test_part(data, data_root=data_root, download=download)
        test = choose_subset(whole, plan.test_images, seed=0)
        check_splits(train, test, data)
        held_out = not has_test_split(data.source, data_root=data_root, download=download)
        return Images(train, test, held_out)

    def describe(self) -> dict[str, Any]:
        """The description of the images in ``worth.json``."""
        return {
            "name": self.train.name, "train": len(self.train), "test": len(self.test),
            "classes": len(self.train.labelled()[1]), "held_out": self.held_out,
            "train_digest": self.train.digest, "test_digest": self.test.digest,
        }  # fmt: skip


def _settings(config: RunConfig) -> set[str]:
    """The dotted keys of all settings, so that a run started from weights keeps those of the plan."""
    return {key for key, _ in configuration.flatten(configuration.to_dict(config))}


def check(plan: Plan, out: Path) -> None:
    """Raises RunFolderError for a folder that holds a different plan or something else; changes nothing.

    A plan none of whose trainings has kept anything may be replaced by a different one.
    """
    check_folder(out, first=PLAN)
    if has_trained(out):
        check_claim(out, dataclasses.asdict(plan), **_PLAN)


class WorthRun:
    """The state in a folder whose lock this process holds.

    Args:
        public: the public encoder with its own images.
        command: the command line to show on the page.
    """

    def __init__(
        self, plan: Plan, out: Path, images: Images, public: Baseline,
        *, device: torch.device, command: str, say: Say,
    ):  # fmt: skip
        self.plan, self.out, self.images, self.public = plan, out, images, public
        self.device, self.command, self.say = device, command, say
        self.budgets, self.left_out = labels.budgets(images.train, plan.seeds)
        self.classes = len(images.train.labelled()[1])
        self.done = 0

    @cached_property
    def total(self) -> int:
        """The number of trainings and evaluations."""
        seeds, arms = self.plan.seeds, len(self.plan.arms)
        return seeds * (len(PRETRAINED) + len(STARTS) * len(self.budgets) + arms)

    def claim(self) -> None:
        """Makes the folder, whose lock this process holds, belong to this plan on these images.

        Raises:
            RunFolderError: it belongs to a different plan, or has results on other images.
        """
        if not has_trained(self.out):
            shutil.rmtree(self.out / "runs", ignore_errors=True)  # an adaptation's start is its first checkpoint
            write_json(self.out / PLAN, redact_values(dataclasses.asdict(self.plan)))
            return
        claim(self.out, dataclasses.asdict(self.plan), **_PLAN)
        if not (self.out / RESULTS).exists():
            return
        before = read_object(self.out / RESULTS, "data")["data"]
        if different := configuration.changes(before, self.images.describe(), but=["name"]):
            raise RunFolderError(
                f"{self.out} has results on other images ({'; '.join(different)}). Choose a different folder with "
                "--out, or use --fresh to start over."
            )

    def run(self) -> dict[str, Any]:
        """Does what is missing and returns the content of ``worth.json``; the page is written however this ends."""
        with contextlib.ExitStack() as stack:
            self.write()
            stack.callback(write_worth, self.out)
            self._run()
            return self.write()

    def _run(self) -> None:
        for budget in self.budgets:
            labels.keep(self.out / "labels", self.images.train, budget)
        for seed in range(self.plan.seeds):
            for network in PRETRAINED:
                self._pretrain(network, seed)
        for seed in range(self.plan.seeds):
            for start in STARTS:
                self._train_with_labels(start, seed)
        self.write()
        for arm in self.plan.arms:
            (self._evaluate_frozen if arm.use == "frozen" else self._evaluate_tuned)(arm)
            self.write()
        shutil.rmtree(self.out / "features", ignore_errors=True)

    def write(self) -> dict[str, Any]:
        """Writes ``worth.json`` from what has ended so far and returns it.

        A test image that could not be read for one of the answers, as when a disk was away, counts for none of them.
        """
        plan = self.plan
        answers = {
            (arm, seed): found for arm in plan.arms for seed in range(plan.seeds)
            if (found := self._answers(arm, seed)) is not None
        }  # fmt: skip
        images = np.arange(len(self.images.test))
        for one in answers.values():
            images = np.intersect1d(images, one.images)
        right = {
            (arm, budget.key, seed): measuring.right(one, self.images.test, budget.key, images)
            for (arm, seed), one in answers.items() for budget in self.budgets if budget.key in one.predicted
        }  # fmt: skip
        results = {
            "command": self.command, "recipe": plan.base.recipe, "data": self.images.describe(),
            "public": self.public.describe(), "seeds": plan.seeds, "image_size": plan.base.data.image_size,
            "epochs": plan.base.epochs, "total": self.total, "done": self.done, "left_out": self.left_out,
            "budgets": [
                {"key": one.key, "text": one.text, "labels": one.count, "a_class": one.count / self.classes}
                for one in self.budgets
            ],
            "arms": [self._describe(arm, right) for arm in plan.arms],
            "differences": self._differences(right),
            "tuning": dataclasses.asdict(plan.tuning),
            "settings": configuration.to_dict(plan.base), "adapted_settings": configuration.to_dict(plan.adapted),
            "environment": devices.environment(self.device),
        }  # fmt: skip
        write_json(self.out / RESULTS, results)
        return results

    def _pretrain(self, network: Network, seed: int) -> None:
        folder = self._folder(network, seed)
        question = self._question(network, seed)
        result = training.read_result(folder, question=question)
        if result is None:
            config, start = self.plan.pretraining(network, seed), None
            if network == "adapted":
                begun = start_from(config, chosen=_settings(config), run=folder)
                config, start = begun.config, begun.tensors
            self.say(f"{network}, seed {seed}: {config.epochs} epochs of {len(self.images.train)} images.")
            result = training.pretrain(
                config, folder, self.images.train, start=start, device=self.device, display=Display(),
                question=question,
            )  # fmt: skip
            self.write()
        training.remove_work(folder)
        self._note(f"{network}, pre-trained, seed {seed}", result)

    def _train_with_labels(self, start: Network, seed: int) -> None:
        if (encoder := self._encoder(start, seed)) is None:
            self.done += len(self.budgets)
            return
        network, width = encoder
        for budget in self.budgets:
            folder = self._tuned_folder(start, budget, seed)
            question = self._question(start, budget.key, seed)
            result = training.read_result(folder, question=question)
            if result is None:
                labelled = self.images.train.subset(budget.images[seed])
                settings = self.plan.tuning.for_labels(len(labelled), training.fewest(labelled))
                result = training.train_with_labels(
                    network, width, labelled, self.plan.base.data, folder,
                    settings=settings, device=self.device, seed=seed, question=question,
                )  # fmt: skip
            training.remove_work(folder)
            self._note(f"{start}, trained with {budget.text}, seed {seed}", result)

    def _evaluate_frozen(self, arm: Arm) -> None:
        fixed = arm.network in ("pixels", "public", "public_small")  # features that do not depend on the seed
        folder, taken, base = self.out / "features" / arm.key, None, self.plan.base.data
        for seed in range(self.plan.seeds):
            if self._answers(arm, seed) is None and (network := self._network(arm.network, seed)) is not None:
                if taken is None or not fixed:
                    data = self._data(arm.network)
                    question = f"{arm.key} {0 if fixed else seed} {self.plan.sha256} {data}"
                    taken = measuring.features(
                        network, self.images.train, self.images.test, data, folder,
                        fingerprint=question, device=self.device,
                        refuse=partial(
                            refuse_many, folder=self.out, part=base.max_unreadable, workers=base.workers, say=self.say
                        ),
                    )  # fmt: skip
                train, test, costs = taken
                known = self._answers(arm, 0) if fixed else None
                answers = measuring.classify(
                    train, test, self.budgets, self.classes, seed=seed, costs=costs, known=known
                )
                self._keep(arm, seed, answers)
            self._note(f"{arm.network}, {arm.use}, evaluation with seed {seed}", {})
        shutil.rmtree(folder, ignore_errors=True)  # as large as the dataset: not kept until the end

    def _evaluate_tuned(self, arm: Arm) -> None:
        for seed in range(self.plan.seeds):
            if self._answers(arm, seed) is None and (encoder := self._encoder(arm.network, seed)) is not None:
                predicted, images = {}, np.zeros(0, np.int64)
                costs: dict[str, Any] = {}
                for budget in self.budgets:
                    folder = self._tuned_folder(arm.network, budget, seed)
                    question = self._question(arm.network, budget.key, seed)
                    result = training.read_result(folder, question=question) or {"error": "it did not run"}
                    costs[budget.key] = result
                    if "error" in result:
                        continue
                    classifier = training.load_classifier(folder, *encoder, self.classes, question=question)
                    devices.MixedPrecision.choose("float32", self.device).place(classifier.learner)
                    scores, images, _ = score_images(
                        classifier, self.images.test, self.plan.base.data, device=self.device
                    )
                    predicted[budget.key] = scores.argmax(dim=1).numpy()
                self._keep(arm, seed, Answers(predicted, images, {"tuning": costs}))
            for budget in self.budgets:
                training.remove_classifier(self._tuned_folder(arm.network, budget, seed))
            self._note(f"{arm.network}, {arm.use}, evaluation with seed {seed}", {})

    def _keep(self, arm: Arm, seed: int, answers: Answers) -> None:
        (self.out / "answers").mkdir(exist_ok=True)
        answers.write(self._answers_path(arm, seed), question=self._question(arm.key, seed))

    def _answers(self, arm: Arm, seed: int) -> Answers | None:
        return Answers.read(self._answers_path(arm, seed), question=self._question(arm.key, seed))

    def _describe(self, arm: Arm, right: dict[Any, Any]) -> dict[str, Any]:
        """The description of an arm in ``worth.json``: accuracies over seeds and images, and seconds taken."""
        accuracy = {}
        for budget in self.budgets:
            rows = [right[key] for seed in range(self.plan.seeds) if (key := (arm, budget.key, seed)) in right]
            if rows:
                accuracy[budget.key] = {**_estimate(rows, least=0.0), "seeds": [r.mean() for r in rows]}
        seeds = range(self.plan.seeds)
        pretraining = [self._pretrained(arm.network, seed) for seed in (seeds if arm.network in PRETRAINED else ())]
        answers = [self._answers(arm, seed) for seed in seeds]
        return {
            "network": arm.network, "use": arm.use,
            "image_size": (self.plan.base.data if arm.use == "tuned" else self._data(arm.network)).image_size,
            "accuracy": accuracy,
            "pretraining": [one for one in pretraining if one is not None],
            "evaluation": [dict(one.facts) for one in answers if one is not None],
        }  # fmt: skip

    def _differences(self, right: dict[Any, Any]) -> list[dict[str, Any]]:
        """Every arm minus every later one, paired over the test images and the seeds that both have."""
        rows = []
        for (a, b), budget in ((pair, one) for pair in combinations(self.plan.arms, 2) for one in self.budgets):
            seeds = [s for s in range(self.plan.seeds) if {(a, budget.key, s), (b, budget.key, s)} <= right.keys()]
            gains = [right[a, budget.key, seed] - right[b, budget.key, seed] for seed in seeds]
            if gains:
                rows.append({"a": a.key, "b": b.key, "budget": budget.key, **_estimate(gains, least=-1.0)})
        return rows

    def _data(self, network: Network) -> DataConfig:
        """The image settings for a network when it is frozen."""
        small = dataclasses.replace(self.public.data, image_size=self.plan.base.data.image_size)
        return {"public": self.public.data, "public_small": small}.get(network, self.plan.base.data)

    def _network(self, network: Network, seed: int) -> nn.Module | None:
        if network == "pixels":
            return RawPixels()
        encoder = self._encoder(network, seed)
        return None if encoder is None else encoder[0]

    def _encoder(self, network: Network, seed: int) -> tuple[nn.Module, int] | None:
        """An encoder and the width of its features; None if its training diverged."""
        initial, width = initialise_encoder(self.plan.pretraining("scratch", seed))
        if network == "random":
            return initial, width
        if network in ("public", "public_small"):
            return self.public.encoder, width
        result = self._pretrained(network, seed)
        return None if result is None or "error" in result else (load_encoder(self._folder(network, seed)), width)

    def _pretrained(self, network: Network, seed: int) -> dict[str, Any] | None:
        return training.read_result(self._folder(network, seed), question=self._question(network, seed))

    def _question(self, *parts: Any) -> str:
        """Identifies a training or an evaluation of this plan."""
        runs = [configuration.identifying(one) for one in (self.plan.base, self.plan.adapted)]
        return fingerprint(*parts, *runs, self.plan.sha256, dataclasses.asdict(self.plan.tuning))

    def _folder(self, network: Network, seed: int) -> Path:
        return self.out / "runs" / network / f"seed-{seed}"

    def _answers_path(self, arm: Arm, seed: int) -> Path:
        """Without a suffix, for the two files of ``Answers``."""
        return self.out / "answers" / f"{arm.key}-seed-{seed}"

    def _tuned_folder(self, start: Network, budget: Budget, seed: int) -> Path:
        return self.out / "tuned" / start / f"{budget.key}-seed-{seed}"

    def _note(self, what: str, result: dict[str, Any]) -> None:
        self.done += 1
        state = f"failed: {result['error']}" if "error" in result else "done"
        seconds = f", {result['seconds']:.0f} s" if "seconds" in result else ""
        self.say(f"{self.done} of {self.total}: {what}: {state}{seconds}")


def _estimate(rows: Sequence[NDArray[np.float64]], *, least: float) -> dict[str, float]:
    """The mean over seeds, one row each, and test images, with its interval; values are between ``least`` and 1."""
    values = np.stack(rows)
    return {"mean": float(values.mean()), **crossed_interval(values, possible=(least, 1.0))._asdict()}
