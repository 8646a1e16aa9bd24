"""The comparison as a whole: tunes every method, runs the seeds, and keeps ``compare.json`` and the page up to date."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from matrix_ssl import config as configuration
from matrix_ssl.compare import job as jobs
from matrix_ssl.compare import schedule
from matrix_ssl.compare.plan import Job, Plan, baselines, most_trials, next_trial, runs, with_seeds
from matrix_ssl.compare.plan import public as public_job
from matrix_ssl.config.method_names import file_name, short_name
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.evaluate.baselines import Baseline
from matrix_ssl.report.comparison.data import RESULTS
from matrix_ssl.report.comparison.page import write_comparison
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.environment import environment
from matrix_ssl.runs.files import read_object, write_json
from matrix_ssl.runs.folder import check_claim, check_folder, claim
from matrix_ssl.runs.terminal import redact_values
from matrix_ssl.training import setup

PLAN = "plan.json"
_PLAN: Any = {"first": PLAN, "configurations": ["base"]}  # how it is claimed
MAY_CHANGE = [f"base.{key}" for key in configuration.MAY_CHANGE]  # keys of a plan that may change during a comparison


class ComparisonRun:
    """The state of a comparison in its folder; ``command`` is the command line to show on the page.

    ``public`` are encoders that are evaluated alongside the methods but not trained. They are not part of the plan: a
    finished comparison may get others.

    Raises:
        ConfigError: a method has fewer different trials than asked for, or a setting does not fit a method.
    """

    def __init__(self, plan: Plan, out: Path, *, command: str, public: Sequence[Baseline] = ()):
        self.plan, self.out, self.command = plan, out, command
        self.public = [public_job(plan, one) for one in public]
        self.trials = plan.trials if plan.trials > 1 else 0
        self.failures: dict[Path, dict[str, Any]] = {}  # jobs that ended without a result in this session
        for method in plan.methods:
            if plan.trials > most_trials(plan, method):
                raise ConfigError(f"--trials {plan.trials}: {method!r} has {most_trials(plan, method)} different ones.")
            earlier: list[dict[str, Any]] = []
            for _ in range(self.trials):
                earlier.append(next_trial(plan, method, earlier, 0).settings)
            runs(plan, method, {})

    def open_data(self, *, data_root: Path | None, download: bool, fresh: bool = False) -> list[str]:
        """Checks the images, and that they fit batch and encoder, before writing anything; returns remarks on them.

        Raises:
            RunFolderError: the folder has results on other images and ``fresh`` does not set it aside.
        """
        plan = self.plan
        learn = jobs.open_training_part(plan.base.data, data_root=data_root, download=download)
        judge = jobs.open_test_part(plan.base.data, data_root=data_root, download=download)
        if judge.classes != learn.classes:
            raise ConfigError(f"{plan.base.data.source!r}: the training and test splits have different classes.")
        identity = {"train": len(learn), "test": len(judge), "classes": len(learn.classes or []),
                    "train_digest": learn.digest, "test_digest": judge.digest}  # fmt: skip
        kept = jobs.has_trained(self.out) or any(self.out.rglob(jobs.RESULT))
        resumed = kept and (self.out / RESULTS).exists() and not fresh
        before = read_object(self.out / RESULTS, "data")["data"] if resumed else identity
        if different := configuration.changes(before, identity, but=["name"]):
            raise RunFolderError(
                f"{self.out} has compared other images ({'; '.join(different)}): choose a different folder "
                "with --out, or use --fresh to start over."
            )
        self.data = {"name": learn.name, **identity}
        part, _ = jobs.hold_out(learn)  # for the trials, and for the curves of the runs
        trials = [(next_trial(plan, plan.reference, [], 0), part)] if self.trials else []
        for job, source in (*trials, (runs(plan, plan.reference, {})[0], learn)):
            config = configuration.override(job.config, ["data.subset=0"])
            setup.prepare(config, source=source, device=torch.device("cpu"), display=Display(quiet=True))
        return list(dict.fromkeys((*learn.remarks, *judge.remarks)))

    def check(self) -> None:
        """Raises RunFolderError for a folder that holds a different comparison or something else; changes nothing.

        A comparison none of whose trainings has kept anything may be replaced by a different one.
        """
        check_folder(self.out, first=PLAN)
        if jobs.has_trained(self.out):
            check_claim(self.out, self.plan.describe(), may_change=[*MAY_CHANGE, *self._grown()], **_PLAN)

    def claim(self) -> None:
        """Makes the folder, whose lock this process holds, belong to this plan; raises the errors of ``check``."""
        if not jobs.has_trained(self.out):
            write_json(self.out / PLAN, redact_values(self.plan.describe()))
            return
        grown = self._grown()
        claim(self.out, self.plan.describe(), may_change=[*MAY_CHANGE, *grown], **_PLAN)
        if grown:
            write_json(self.out / PLAN, redact_values(self.plan.describe()))

    def _grown(self) -> list[str]:
        """The keys among methods and seeds that have grown or been reordered; RunFolderError for fewer methods.

        Also the keys that an earlier version wrote with the full paths of methods' files.
        """
        if not (self.out / PLAN).exists():
            return []
        before = read_object(self.out / PLAN, "methods", "seeds", "reference")
        methods, seeds, reference = before["methods"], before["seeds"], before["reference"]
        names = [*methods, reference] if isinstance(methods, list) else [None]
        if not (all(isinstance(name, str) for name in names) and type(seeds) is int):
            return []  # damaged, and so a different comparison
        named = set(map(short_name, self.plan.methods))
        if left_out := [name for name in map(short_name, methods) if name not in named]:
            raise RunFolderError(
                f"{self.out} compares {', '.join(left_out)} as well: name all of its methods and those to add in "
                "--methods, or choose a different folder with --out."
            )
        now = self.plan.describe()
        own = list(now["methods"])
        more = {
            "methods": set(map(file_name, methods)) <= set(own) and methods != own,
            "seeds": seeds < self.plan.seeds,
            "reference": file_name(reference) == now["reference"] != reference,
        }
        return [key for key, is_more in more.items() if is_more]

    def run(
        self, *, where: list[schedule.Place], data_root: Path | None,
        ended: Callable[[Job, dict[str, Any]], None], running: Callable[[list[Job]], None],
    ) -> dict[str, Any]:  # fmt: skip
        """Runs what has no result yet, after ``open_data`` and ``claim``; returns the content of ``compare.json``."""
        device, threads = devices.choose_device(where[0].device), where[0].threads or torch.get_num_threads()
        name = devices.device_name(device)
        self.environment = environment(device=device.type, device_name=name, threads=threads, processes=1)
        self.write()

        def note(job: Job, result: dict[str, Any]) -> None:
            if schedule.read_result(self.out, job) is None:
                self.failures[job.folder] = result
            self.write()
            ended(job, result)

        with contextlib.ExitStack() as stack:
            stack.callback(write_comparison, self.out)
            schedule.run_jobs(self.out, self.waiting, where, data_root=data_root, ended=note, running=running)
        return self.write()

    def waiting(self) -> list[Job]:
        """The jobs that may run now: the next trial of every method, then the first seed of all of them, and so on."""
        trials, ready = [], []
        for method in self.plan.methods:
            tried = self.tried(method)
            if len(tried) < self.trials:
                trials += with_seeds(self.plan, self.next_trial(method, tried))
            else:
                ready += runs(self.plan, method, self.best(tried)[1])
        trials.sort(key=lambda job: (job.number, job.trial_seed))
        ready.sort(key=lambda job: (job.number, job.epochs != self.plan.budget))
        frozen = [baselines(self.plan), *self.public]
        return [job for job in (*trials, *ready, *frozen) if self.result(job) is None]

    def tried(self, method: str) -> list[tuple[Job, dict[str, Any]]]:
        """A method's trials that have ended for all of their seeds, in order, with their results."""
        tried: list[tuple[Job, dict[str, Any]]] = []
        for _ in range(self.trials):
            job = self.next_trial(method, tried)
            results = [self.result(each) for each in with_seeds(self.plan, job)]
            if any(result is None for result in results):
                break
            tried.append((job, _together([result for result in results if result is not None])))
        return tried

    def next_trial(self, method: str, tried: list[tuple[Job, dict[str, Any]]]) -> Job:
        """A method's next trial after those that have ended."""
        return next_trial(self.plan, method, [job.settings for job, _ in tried], self.best(tried)[0])

    def best(self, tried: list[tuple[Job, dict[str, Any]]]) -> tuple[int, dict[str, Any]]:
        """The number and settings of the trial with the best held-out accuracy; the first of equal ones.

        The unchanged recipe if no trial has succeeded.
        """
        best, settings, highest = 0, {}, (-1.0, -1.0)
        for job, result in tried:
            accuracy = result.get("accuracy", {})
            first, second = (accuracy.get(key, {}).get("mean", -1.0) for key in (self.plan.measure, "knn_20"))
            if (first, second) > highest:
                best, settings, highest = job.number, job.settings, (first, second)
        return best, settings

    def count(self) -> tuple[int, int]:
        """The number of jobs that have ended, and of all jobs, including the baselines."""
        frozen = [baselines(self.plan), *self.public]
        done, total = sum(self.result(job) is not None for job in frozen), len(frozen)
        for method in self.plan.methods:
            tried = self.tried(method)
            ready = runs(self.plan, method, self.best(tried)[1])
            trials = [job for job, _ in tried]
            if len(tried) < self.trials:  # some seeds of the running one may have ended
                trials.append(self.next_trial(method, tried))
            ready += [job for trial in trials for job in with_seeds(self.plan, trial)]
            done += sum(self.result(job) is not None for job in ready)
            total += self.trials * self.plan.trial_seeds + len(ready) - len(trials) * self.plan.trial_seeds
        return done, total

    def write(self) -> dict[str, Any]:
        """Writes ``compare.json`` from what has ended so far and returns it."""
        plan = self.plan
        shared = dict(configuration.flatten(configuration.to_dict(plan.base)))
        own = ("method.", "seed", "epochs", "recipe", "data.images", "data.digest")
        results = {
            "command": self.command, "recipe": plan.base.recipe, "reference": plan.reference,
            "methods": list(plan.methods), "seeds": list(range(plan.seeds)), "budget": plan.budget,
            "rivals_budget": plan.rivals_budget or None, "measure": plan.measure, "data": self.data,
            "settings": {key: value for key, value in shared.items() if not key.startswith(own)},
            "environment": self.environment,
            "baselines": (self.result(baselines(plan)) or {}).get("accuracy", {}),
            "public": [
                job.settings | result for job in self.public if (result := self.result(job)) is not None
            ],
            "tuning": self._tuning(), "rows": self._rows(),
        }  # fmt: skip
        write_json(self.out / RESULTS, results)
        return results

    def result(self, job: Job) -> dict[str, Any] | None:
        """The result of a job, or why it failed in this session; None if it is still to run."""
        return self.failures.get(job.folder) or schedule.read_result(self.out, job)

    def _tuning(self) -> dict[str, Any] | None:
        plan = self.plan
        if not self.trials:
            return None
        rows = []
        for method in plan.methods:
            tried = self.tried(method)
            best = self.best(tried)[0] if len(tried) == self.trials else None
            for job, result in tried:
                row = {"method": method, "trial": job.number, "settings": job.settings, "chosen": job.number == best}
                if "error" in result:
                    rows.append(row | {"error": result["error"]})
                else:
                    accuracy = {key: value["mean"] for key, value in result["accuracy"].items()}
                    seeds = {"seeds": result["seeds"]} if "seeds" in result else {}
                    rows.append(row | {"accuracy": accuracy, "seconds": result["seconds"]} | seeds)
        return {
            "trials": plan.trials, "seeds": plan.trial_seeds, "budget": plan.tuning_budget, "held_out": jobs.HELD_OUT,
            "measure": plan.measure, "settings": list(plan.tuning_settings), "rows": rows,
        }  # fmt: skip

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for method in self.plan.methods:
            tried = self.tried(method)
            if len(tried) < self.trials:
                continue
            for job in runs(self.plan, method, self.best(tried)[1]):
                if (result := self.result(job)) is not None:
                    row = {"method": method, "seed": job.number, "epochs": job.epochs, "settings": job.choices}
                    rows.append(row | result)
        return rows


def _together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a trial from those of its seeds: the mean accuracies, or the error of the first that failed."""
    if len(results) == 1:
        return results[0]
    if failed := [result for result in results if "error" in result]:
        return {"error": failed[0]["error"]}
    seeds = [{key: value["mean"] for key, value in result["accuracy"].items()} for result in results]
    accuracy = {key: {"mean": sum(each[key] for each in seeds) / len(seeds)} for key in seeds[0]}
    return {"accuracy": accuracy, "seconds": sum(result["seconds"] for result in results), "seeds": seeds}
