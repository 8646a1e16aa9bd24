"""Reuses the trials of an earlier comparison for one with other runs: other epochs, seeds or methods."""

from pathlib import Path
from typing import Any

from matrix_ssl import config as configuration
from matrix_ssl.compare import schedule
from matrix_ssl.compare.comparison import MAY_CHANGE, PLAN, ComparisonRun
from matrix_ssl.compare.job import JOB, RESULT
from matrix_ssl.compare.plan import with_seeds
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.report.comparison.data import RESULTS
from matrix_ssl.runs.files import read_object, write_json

_RULES = {"trials": int, "trial_seeds": int, "tuning_budget": int, "tuning_settings": list, "measure": str}
_OF_RUNS = ("budget", "rivals_budget", "seeds", "methods", "reference")


def read_rules(earlier: Path) -> dict[str, Any]:
    """The rules by which the trials of a comparison were made, as values of ``Plan``.

    Raises:
        ConfigError: it has no trials.
        RunFolderError: the folder is not that of a comparison.
    """
    if not (earlier / PLAN).is_file():
        raise RunFolderError(f"--trials-from {earlier} is not the folder of a comparison: it has no {PLAN}.")
    plan = {"trial_seeds": 1} | read_object(earlier / PLAN)
    for key, kind in _RULES.items():
        if type(plan.get(key)) is not kind:
            raise RunFolderError(f"{earlier / PLAN} is damaged: {key} is {plan.get(key)!r}. Put the right file back.")
    if plan["trials"] < 2:
        raise ConfigError(f"--trials-from {earlier}: this comparison made no trials; remove the option.")
    return {key: plan[key] for key in _RULES} | {"tuning_settings": tuple(map(str, plan["tuning_settings"]))}


def check_fits(comparison: ComparisonRun, earlier: Path, *, fresh: bool = False) -> None:
    """Raises RunFolderError if trials would be taken from a comparison with other images or settings.

    Args:
        comparison: after ``open_data``; if it has all of its trials, nothing is taken.
        fresh: its trials will be set aside.
    """
    if not fresh and all(len(comparison.tried(method)) == comparison.trials for method in comparison.plan.methods):
        return
    before, images = read_object(earlier / PLAN, "base"), read_object(earlier / RESULTS, "data")["data"]
    before["base"] = configuration.completed(before["base"])
    different = configuration.changes(before, comparison.plan.describe(), but=[*MAY_CHANGE, *_OF_RUNS])
    different += configuration.changes(images, comparison.data, but=["name"])
    if different:
        raise RunFolderError(
            f"--trials-from {earlier} has trials with other settings ({'; '.join(different[:5])}): choose the same "
            "ones, or remove the option."
        )


def adopt(comparison: ComparisonRun, earlier: Path) -> int:
    """Copies the trials that a comparison lacks from an earlier one that fits; returns how many it has then.

    Trials that the earlier one has not made remain to be run.
    """
    plan = comparison.plan
    for method in plan.methods:
        while len(tried := comparison.tried(method)) < comparison.trials:
            jobs = with_seeds(plan, comparison.next_trial(method, tried))
            if any(schedule.read_result(earlier, job) is None for job in jobs):
                break
            for job in jobs:
                (comparison.out / job.folder).mkdir(parents=True, exist_ok=True)
                for name in (JOB, RESULT):  # in this order, so that there is no result without its job
                    write_json(comparison.out / job.folder / name, read_object(earlier / job.folder / name))
    return sum(len(comparison.tried(method)) for method in plan.methods) * plan.trial_seeds
