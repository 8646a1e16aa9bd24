"""The parts of a comparison: the trials that tune every method, and the runs whose results are reported.

Everything is equal for all methods: images, their order, views, encoder, epochs, evaluation and the number of trials.
The trials of a method are a coordinate search. First come the unchanged recipe, then twice and half its learning rate,
and further factors of two as long as the best rate is the highest or lowest tried. Then, at the best rate, come the
settings that the method proposes (``Method.variants``) and, with the best of these, rates between the best rate and its
neighbours. With several seeds, a trial is judged by their mean, so that a lucky seed is not chosen.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matrix_ssl import config as configuration
from matrix_ssl.config import RunConfig
from matrix_ssl.config.method_names import file_name, folder_name, join_name, short_name, split_name
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.encoder import architectures
from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.baselines import Baseline
from matrix_ssl.methods import complete_options, find_method, list_methods, option_defaults
from matrix_ssl.training import setup

RATE = "optimizer.learning_rate"
_FACTOR = 2.0  # between the rates tried first
_FINER = 2  # trials of intermediate rates after a method's variants

Stage = Literal["tuning", "run", "baselines", "public"]


@dataclass(frozen=True)
class Plan:
    """The whole comparison; ``plan.json`` in its folder."""

    base: RunConfig  # the recipe with the changes for all; its method and seed are replaced
    methods: tuple[str, ...]  # as ``choose_methods`` returns them
    reference: str  # the method that the others are compared with
    seeds: int
    budget: int  # epochs of every method
    rivals_budget: int  # epochs of additional runs of all methods except the reference; 0: none
    trials: int  # of every method; 1: the unchanged recipe
    tuning_budget: int  # epochs of a trial
    tuning_settings: tuple[str, ...]  # key=value, changes for the trials only
    measure: str  # selects the best trial and ranks the methods
    trial_seeds: int = 1  # per trial, whose accuracy is their mean
    options: dict[str, Any] = field(default_factory=dict)  # that the recipe's method lacks, for methods that have them

    def describe(self) -> dict[str, Any]:
        """The content of ``plan.json``; with one seed per trial and no such options, it is that of earlier versions.

        Methods' files are named without folders: they may be moved, and a job records their content.
        """
        usual = {"trial_seeds": 1, "options": {}}
        values = {key: value for key, value in dataclasses.asdict(self).items() if usual.get(key) != value}
        return values | {"methods": tuple(map(file_name, self.methods)), "reference": file_name(self.reference)}


@dataclass(frozen=True)
class Job:
    """One training and its evaluation, or the evaluation of the baselines or of a public encoder."""

    stage: Stage
    method: str
    number: int  # the trial's, or the seed
    epochs: int
    settings: dict[str, Any]  # differences from the recipe with this method, by dotted keys; or a public encoder
    config: RunConfig
    trial_seed: int = 0

    @property
    def folder(self) -> Path:
        """The job's folder, relative to that of the comparison."""
        name = folder_name(self.method)
        if self.stage == "baselines":
            return Path("baselines")
        if self.stage == "public":
            return Path("public", re.sub(r"[^\w.-]+", "-", f"{self.settings['name']}-{self.settings['sha256'][:12]}"))
        if self.stage == "tuning":
            return Path("tuning", name, f"trial-{self.number}{f'-seed-{self.trial_seed}' if self.trial_seed else ''}")
        return Path("runs", f"{name}-{self.epochs}-epochs", f"seed-{self.number}")

    @property
    def choices(self) -> dict[str, Any]:
        """The learning rate and the method's options by dotted keys, as a row of the results has them."""
        options = {f"method.{key}": value for key, value in self.config.method.options.items()}
        return {RATE: self.config.optimizer.learning_rate} | options

    @property
    def label(self) -> str:
        """The job's name in progress lines and errors."""
        if self.stage == "baselines":
            return "raw pixels and untrained network"
        if self.stage == "public":
            return str(self.settings["name"])
        what = "trial" if self.stage == "tuning" else f"{self.epochs} epoch{'s' * (self.epochs > 1)}, seed"
        seed = f", seed {self.trial_seed}" if self.trial_seed else ""
        return f"{short_name(self.method)}, {what} {self.number}{seed}"


def choose_methods(text: str, base: RunConfig) -> tuple[str, ...]:
    """The methods in a comma-separated list, files by absolute path; ``all`` stands for those of the package.

    ``NAME:OPTION=VALUE`` is a method with a value of its own for an option, written as the option's type writes it, so
    that 0.5 and .50 are the same. ``all`` leaves out methods that need an encoder with tokens if the run ``base`` has a
    different one.

    Raises:
        ConfigError: a method or option does not exist, a value does not fit, a method needs a different encoder, or two
            have the same name.
    """
    methods: list[str] = []
    for name in filter(None, map(str.strip, text.split(","))):
        suitable = [known for known in list_methods() if name == "all" and _refusal(known, base) is None]
        methods += suitable if name == "all" else [_in_full(name)]
    methods = list(dict.fromkeys(methods))
    if not methods:
        raise ConfigError(f"--methods {text!r}: list at least one method, or use 'all'.")
    for name in methods:
        if (refusal := _refusal(name, base)) is not None:
            raise refusal
    names = [folder_name(name) for name in methods]
    for name, folder in zip(methods, names, strict=True):
        if names.count(folder) > 1:
            raise ConfigError(f"--methods: two methods are called {short_name(name)!r}; rename the file.")
    return tuple(methods)


def _in_full(method: str) -> str:
    """A method with its file by absolute path, and its own options in order and as their types write them."""
    name, given = split_name(method)
    name = str(expanded(name).resolve()) if name.endswith(".py") else name
    known, _, rest = name.partition(":")
    if rest and (known in list_methods() or known.endswith(".py")):
        raise ConfigError(f"--methods {method!r}: write an option as {known}:OPTION=VALUE.")
    return join_name(name, {option: _text(value) for option, value in _own_options(name, given).items()})


def _own_options(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The values of some of a method's options, in the order of its constructor, from their text."""
    if not given:
        return {}
    complete = complete_options(find_method(name), given)
    return {option: value for option, value in complete.items() if option in given}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refusal(method: str, base: RunConfig) -> ConfigError | None:
    """Why a method cannot train the encoder of a run; None if it can. Raises the errors of ``find_method``."""
    name, _ = split_name(method)
    kind, data = find_method(name), base.data
    if not kind.needs_tokens:
        return None
    channels = len(data.mean) or 3  # any number if it is not measured yet: tokens do not depend on it
    encoder = architectures.outline(base.network, image_size=data.image_size, channels=channels)
    named = dataclasses.replace(base, method=dataclasses.replace(base.method, name=name))
    try:
        setup.check_tokens(kind, encoder, named)
    except ConfigError as error:
        return error
    return None


def most_trials(plan: Plan, method: str) -> int:
    """The most trials that a method may have: the recipe, two other rates, its variants, and two rates in between."""
    return 3 + len(_variants(plan, method)) + _FINER


def next_trial(plan: Plan, method: str, earlier: Sequence[dict[str, Any]], best: int) -> Job:
    """The next trial of a method.

    Args:
        earlier: the settings of the trials before it, by dotted keys, in order.
        best: the number of the best one.
    """
    settings = _next_settings(earlier, best, plan.base.optimizer.learning_rate, _variants(plan, method))
    return _job(plan, "tuning", method, len(earlier), plan.tuning_budget, settings, plan.tuning_settings)


def _next_settings(
    earlier: Sequence[dict[str, Any]], best: int, recipe: float, variants: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The settings of the next trial; ``recipe`` is the recipe's learning rate."""
    if len(earlier) < 3:
        return ({}, {RATE: recipe * _FACTOR}, {RATE: recipe / _FACTOR})[len(earlier)]
    kept, rates = earlier[best], sorted({settings.get(RATE, recipe) for settings in earlier})
    rate = kept.get(RATE, recipe)
    waiting = [variant for variant in variants if not any(variant.items() <= tried.items() for tried in earlier)]
    if len(waiting) == len(variants) and rate in (rates[0], rates[-1]):
        return {RATE: rate * _FACTOR if rate == rates[-1] else rate / _FACTOR}
    if waiting:  # instead of any other variant
        return {key: value for key, value in kept.items() if key == RATE} | waiting[0]
    place = rates.index(rate)
    neighbours = [rates[i] for i in (place + 1, place - 1) if 0 <= i < len(rates)]
    widest = max(neighbours, key=lambda other: abs(math.log(other / rate)))  # of equal gaps, the upper one
    return kept | {RATE: math.sqrt(rate * widest)}


def with_seeds(plan: Plan, trial: Job) -> list[Job]:
    """A trial, once for each of its seeds."""
    return [
        dataclasses.replace(trial, trial_seed=seed, config=dataclasses.replace(trial.config, seed=seed))
        for seed in range(plan.trial_seeds)
    ]


def runs(plan: Plan, method: str, settings: dict[str, Any]) -> list[Job]:
    """The reported runs of a method with the chosen settings."""
    budgets = [plan.budget]
    if plan.rivals_budget not in (0, plan.budget) and method != plan.reference:
        budgets.append(plan.rivals_budget)
    return [_job(plan, "run", method, seed, epochs, settings, ()) for epochs in budgets for seed in range(plan.seeds)]


def baselines(plan: Plan) -> Job:
    """The job that evaluates raw pixels and the untrained network."""
    return Job("baselines", plan.reference, 0, 0, {}, setup.complete(_with_method(plan, plan.reference)))


def public(plan: Plan, baseline: Baseline) -> Job:
    """The job that evaluates a frozen public encoder."""
    config = dataclasses.replace(baselines(plan).config, data=baseline.data)
    return Job("public", baseline.reference, 0, 0, {"name": baseline.name, **baseline.describe()}, config)


def _job(
    plan: Plan, stage: Stage, method: str, number: int, epochs: int, settings: dict[str, Any], extra: Sequence[str]
) -> Job:
    seed = 0 if stage == "tuning" else number
    config = dataclasses.replace(_with_method(plan, method), epochs=epochs, seed=seed)
    config = configuration.override(config, [*extra, *(f"{key}={value}" for key, value in settings.items())])
    return Job(stage, method, number, epochs, settings, setup.complete(config))


def _variants(plan: Plan, method: str) -> list[dict[str, Any]]:
    """The variants that a method proposes, by dotted keys: none that the recipe has, or that change its own options."""
    name, own = split_name(method)
    kind = find_method(name)
    usual = complete_options(kind, _with_method(plan, method).method.options)
    return [
        {f"method.{option}": value for option, value in variant.items()}
        for variant in kind.variants
        if any(usual.get(option) != value for option, value in variant.items()) and not own.keys() & variant.keys()
    ]


def _with_method(plan: Plan, method: str) -> RunConfig:
    """The base run with a different method and nothing else changed, whatever the method's paper recommends."""
    name, own = split_name(method)
    run, known = setup.use_method(plan.base, name, papers=False), option_defaults(find_method(name))
    options = {option: value for option, value in plan.options.items() if option in known} | _own_options(name, own)
    return dataclasses.replace(run, method=dataclasses.replace(run.method, options={**run.method.options, **options}))
