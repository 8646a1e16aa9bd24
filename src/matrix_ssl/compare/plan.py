"""What a comparison consists of: the trials that tune every method, and the runs whose results are reported.

Everything is equal for all methods: images, their order, views, encoder, epochs, evaluation and the number of trials.
The trials of a method are a coordinate search, as a person would tune: first the recipe as it is, then twice and half
its learning rate, then, at the best rate so far, what the method itself names worth trying (``Method.variants``), then
four times and a quarter of the rate with the best of these.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matrix_ssl import config as configuration
from matrix_ssl.config import RunConfig
from matrix_ssl.errors import ConfigError
from matrix_ssl.methods import complete_options, find_method, list_methods
from matrix_ssl.training import setup

RATE = "optimizer.learning_rate"
_NEAR, _FAR = (2.0, 0.5), (4.0, 0.25)  # factors of the recipe's learning rate, before and after the variants

Stage = Literal["tuning", "run", "baselines"]


@dataclass(frozen=True)
class Plan:
    """The whole comparison; ``plan.json`` in its folder."""

    base: RunConfig  # the recipe with the changes for all, as ``options.outline``; its method and seed are replaced
    methods: tuple[str, ...]
    reference: str  # the method that the others are compared with
    seeds: int
    budget: int  # epochs of every method
    rivals_budget: int  # epochs of further runs of all methods but the reference; 0: none
    trials: int  # of every method; 1: the recipe as it is
    tuning_budget: int  # epochs of a trial
    tuning_settings: tuple[str, ...]  # key=value, changes for the trials only
    measure: str  # what chooses among the trials and what the page is about


@dataclass(frozen=True)
class Job:
    """One training and its evaluation, or the evaluation of the baselines."""

    stage: Stage
    method: str
    number: int  # of the trial, or the seed
    epochs: int
    settings: dict[str, Any]  # what differs from the recipe with this method, by dotted keys
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Where it lies, below the folder of the comparison."""
        name = Path(self.method).stem
        if self.stage == "baselines":
            return Path("baselines")
        if self.stage == "tuning":
            return Path("tuning", name, f"trial-{self.number}")
        return Path("runs", f"{name}-{self.epochs}-epochs", f"seed-{self.number}")

    @property
    def label(self) -> str:
        """For a person."""
        if self.stage == "baselines":
            return "raw pixels and untrained network"
        what = "trial" if self.stage == "tuning" else f"{self.epochs} epochs, seed"
        return f"{Path(self.method).stem}, {what} {self.number}"


def choose_methods(text: str) -> tuple[str, ...]:
    """The methods of ``all`` or of a list separated by commas; files by their whole path.

    Raises:
        ConfigError: a method does not exist, or two have one name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    found: list[str] = []
    for name in names:
        found += list_methods() if name == "all" else [str(Path(name).resolve()) if name.endswith(".py") else name]
    found = list(dict.fromkeys(found))
    if not found:
        raise ConfigError(f"--methods {text!r}: name at least one, or all.")
    for name in found:
        find_method(name)
    stems = [Path(name).stem for name in found]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ConfigError(f"--methods: two of them are called {stem!r}; rename the file.")
    return tuple(found)


def most_trials(plan: Plan, method: str) -> int:
    """How many different trials a method has."""
    return 1 + len(_NEAR) + len(_variants(plan, method)) + len(_FAR)


def next_trial(plan: Plan, method: str, best: dict[str, Any], number: int) -> Job:
    """A trial of a method.

    Args:
        best: the settings of the best trial so far, by dotted keys.
        number: how many trials there were.
    """
    variants = _variants(plan, method)
    rates = [{RATE: plan.base.optimizer.learning_rate * factor} for factor in (*_NEAR, *_FAR)]
    near = len(_NEAR)
    move = [{}, *rates[:near], *variants, *rates[near:]][number]
    is_variant = near < number <= near + len(variants)
    kept = {key: value for key, value in best.items() if key == RATE or not is_variant}  # a variant replaces another
    return _job(plan, "tuning", method, number, plan.tuning_budget, kept | move, plan.tuning_settings)


def runs(plan: Plan, method: str, settings: dict[str, Any]) -> list[Job]:
    """The reported runs of a method with the settings that were chosen."""
    budgets = [plan.budget]
    if plan.rivals_budget not in (0, plan.budget) and method != plan.reference:
        budgets.append(plan.rivals_budget)
    return [_job(plan, "run", method, seed, epochs, settings, ()) for epochs in budgets for seed in range(plan.seeds)]


def baselines(plan: Plan) -> Job:
    """The evaluation of raw pixels and of the untrained network."""
    return Job("baselines", plan.reference, 0, 0, {}, setup.complete(_with_method(plan, plan.reference)))


def _job(
    plan: Plan, stage: Stage, method: str, number: int, epochs: int, settings: dict[str, Any], extra: Sequence[str]
) -> Job:
    config = _with_method(plan, method)
    seed = 0 if stage == "tuning" else number
    config = dataclasses.replace(config, epochs=epochs, seed=seed)
    config = configuration.override(config, [*extra, *(f"{key}={value}" for key, value in settings.items())])
    return Job(stage, method, number, epochs, settings, setup.complete(config))


def _variants(plan: Plan, method: str) -> list[dict[str, Any]]:
    """What a method names worth trying, by dotted keys, without what the recipe has already."""
    kind = find_method(method)
    usual = complete_options(kind, _with_method(plan, method).method.options)
    return [
        {f"method.{name}": value for name, value in variant.items()}
        for variant in kind.variants
        if any(usual.get(name) != value for name, value in variant.items())
    ]


def _with_method(plan: Plan, method: str) -> RunConfig:
    """The run with another method and nothing else changed, whatever its paper says."""
    return setup.use_method(plan.base, method, papers=False)
