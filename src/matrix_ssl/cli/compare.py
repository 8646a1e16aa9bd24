"""The command ``matrix-ssl compare``."""

import dataclasses
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from matrix_ssl.cli import options
from matrix_ssl.config import check_agreement, split_assignment
from matrix_ssl.config.method_names import short_name
from matrix_ssl.errors import ConfigError, TrainingError, did_you_mean
from matrix_ssl.runs.files import read_object
from matrix_ssl.runs.folder import check_folder, held
from matrix_ssl.training.configure import default_run, outline

if TYPE_CHECKING:
    from matrix_ssl.compare.comparison import ComparisonRun
    from matrix_ssl.compare.plan import Job
    from matrix_ssl.compare.schedule import Place


@click.command()
@options.optional_recipe
@click.option("--methods", default="all", show_default=True, metavar="NAMES", help="Names or Python files, separated "
              "by commas; all: every built-in method that suits the encoder; NAME:OPTION=VALUE: a method with its own "
              "value of an option.")  # fmt: skip
@options.data
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds per method.")
@click.option("--budget", type=click.IntRange(1), metavar="EPOCHS", help="Epochs per run.  [default: the recipe's]")
@click.option("--rivals-budget", type=click.IntRange(1), metavar="EPOCHS", help="Also train all methods but "
              "the reference for this many epochs.")  # fmt: skip
@click.option("--trials", type=click.IntRange(1), metavar="NUMBER", help="Tuning trials per method, on held-out "
              "training images; 1: no tuning.  [default: 4]")  # fmt: skip
@click.option("--trial-seeds", type=click.IntRange(1), metavar="NUMBER", help="Seeds per trial, which is "
              "judged by their mean.  [default: 1]")  # fmt: skip
@click.option("--tuning-budget", type=click.IntRange(1), metavar="EPOCHS", help="Epochs per trial.  [default: the "
              "budget]")  # fmt: skip
@click.option("--tuning-set", multiple=True, metavar="KEY=VALUE", help="Change a setting in the trials "
              "only, for example to use a smaller network; may be repeated.")  # fmt: skip
@click.option("--measure", type=click.Choice(["linear", "knn_1", "knn_20"]), help="Measure that selects the best "
              "trial.  [default: linear]")  # fmt: skip
@click.option("--trials-from", type=options.PATH, metavar="FOLDER", help="Reuse the trials of an earlier comparison, "
              "for example for a second budget.")  # fmt: skip
@click.option("--reference", metavar="NAME", help="Method that the others are compared with.  "
              "[default: the recipe's, or the first]")  # fmt: skip
@options.baseline("gets a row without training")
@options.baseline_size
@options.assignments()
@options.out("runs/compare-RECIPE or runs/compare-RECIPE-DATA", what="Folder of the comparison")
@options.fresh
@options.max_hours
@click.option("--jobs", type=click.IntRange(0), default=0, help="Number of parallel jobs.  [default: one for "
              "each GPU, or for each core]")  # fmt: skip
@options.device
@options.data_root
@options.download
def compare(
    recipe: str | None, methods: str, data: Any, seeds: int, budget: int | None, rivals_budget: int | None,
    trials: int | None, trial_seeds: int | None, tuning_budget: int | None, tuning_set: tuple[str, ...],
    measure: str | None, trials_from: Path | None, reference: str | None, baseline: tuple[str, ...],
    baseline_size: Any, assignments: tuple[str, ...], out: Path | None, fresh: bool, jobs: int, device: str,
    data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Pre-train several methods under equal conditions and compare them. Run the same command to resume.

    Every method gets the same encoder, images, order, views, epochs, evaluation and number of tuning trials. Trials
    are evaluated on a held-out fifth of the training images; the test images are read once, at the end of every run.
    Without a RECIPE it is images_small on a CPU and images on a GPU.
    """
    from matrix_ssl.compare import options as method_options

    check_agreement(assignments, {"epochs": ("--budget", budget)})
    options.check_seeds(assignments)
    given = options.given(
        trials=trials, trial_seeds=trial_seeds, tuning_budget=tuning_budget, tuning_settings=tuning_set or None,
        measure=measure,
    )  # fmt: skip
    _check_trials(given, taken=trials_from is not None)
    shared, chosen = method_options.divide(assignments)
    recipe = recipe or options.recipe_for(device)
    base = outline(recipe, data, shared)
    budget = budget or base.epochs
    if rivals_budget == budget:
        raise ConfigError("--rivals-budget equals --budget; omit it or choose a different value.")
    from matrix_ssl.compare.comparison import PLAN, ComparisonRun
    from matrix_ssl.compare.job import has_trained, with_measured, with_precision
    from matrix_ssl.compare.plan import Plan, choose_methods
    from matrix_ssl.compare.schedule import places
    from matrix_ssl.compare.trials import read_rules
    from matrix_ssl.data.sources import check_outside
    from matrix_ssl.evaluate.baselines import open_baselines
    from matrix_ssl.runs import devices
    from matrix_ssl.runs.environment import command

    names = choose_methods(methods, base)
    chosen = method_options.read_options(chosen, names)
    base, others = method_options.with_options(base, chosen)
    out = out or default_run(f"compare-{recipe}", data, unnamed="")
    chosen_device = devices.choose_device(device)
    check_folder(out, first=PLAN)
    earlier = out / PLAN if has_trained(out) and not fresh else None
    rules: dict[str, Any] = {"trials": 4, "tuning_budget": budget, "tuning_settings": (), "measure": "linear"} | given
    if trials_from is not None:
        if fresh and trials_from.resolve() == out.resolve():
            raise ConfigError(
                f"--trials-from {trials_from} is the folder that --fresh sets aside: choose a different one with --out."
            )
        rules = read_rules(out if earlier is not None and earlier.exists() else trials_from)
    compared = _reference(names, reference, base.method.name, plan=earlier)
    if not out.exists():
        check_outside(out, base.data.source, data_root=data_root)
    public = open_baselines(baseline, base.data, sizes=baseline_size, download=download)  # before images are read
    base = with_measured(base, data_root=data_root, download=download, say=options.say)
    base = with_precision(base, chosen_device, plan=earlier, run="base")
    plan = Plan(
        base=dataclasses.replace(base, seed=0), methods=names,
        reference=compared, seeds=seeds, budget=budget,
        rivals_budget=rivals_budget or 0, options=others, **rules,
    )  # fmt: skip
    public = [one.beside(base.data) for one in public]
    comparison = ComparisonRun(plan, out, command=shlex.join(command()), public=public)
    if not fresh:
        comparison.check()
    remarks = comparison.open_data(data_root=data_root, download=download, fresh=fresh)
    for remark in (*method_options.lacking(chosen, names), *remarks):
        options.say(remark)
    _run(comparison, places(chosen_device.type, jobs=jobs), fresh=fresh, trials_from=trials_from, data_root=data_root)


def _run(
    comparison: "ComparisonRun", where: "list[Place]", *, fresh: bool, trials_from: Path | None, data_root: Path | None
) -> None:
    """Runs what has no result yet and shows the results; TrainingError if some of it fails."""
    from matrix_ssl.compare.comparison import PLAN
    from matrix_ssl.compare.trials import adopt, check_fits
    from matrix_ssl.report.comparison.data import RESULTS, read_comparison
    from matrix_ssl.report.comparison.page import PAGE
    from matrix_ssl.report.comparison.table import terminal

    out = comparison.out
    if trials_from is not None:
        check_fits(comparison, trials_from, fresh=fresh)
    with held(out, fresh=fresh, say=options.say, first=PLAN):
        comparison.claim()
        if trials_from is not None:
            options.say(f"{adopt(comparison, trials_from)} trials are those of {trials_from}.")
        done, total = comparison.count()
        count = len(comparison.plan.methods)
        options.say(
            f"{count} method{'s' if count > 1 else ''}, {total} jobs ({done} done), {len(where)} at a time on "
            f"{where[0].device}: {out}"
        )
        with _progress(comparison) as (ended, running):
            results = comparison.run(where=where, data_root=data_root, ended=ended, running=running)
    options.stdout.print(terminal(read_comparison(out)))
    options.show(results=out / RESULTS, page=out / PAGE)
    failed = [row for row in results["rows"] if "error" in row]
    if failed:
        raise TrainingError(f"{len(failed)} of {len(results['rows'])} runs failed; the page gives the reasons.")
    if comparison.failures:
        raise TrainingError(
            f"{len(comparison.failures)} of {total} jobs failed without a result. Run the same command to retry them."
        )


def _check_trials(given: dict[str, Any], *, taken: bool) -> None:
    """Raises ConfigError for trial options if there are no trials, and for settings that the plan determines."""
    names = {"trials": "--trials", "trial_seeds": "--trial-seeds", "tuning_budget": "--tuning-budget",
             "tuning_settings": "--tuning-set", "measure": "--measure"}  # fmt: skip
    if taken and given:
        raise ConfigError(f"--trials-from takes trials as they were made: remove {names[next(iter(given))]}.")
    useless = [key for key in ("trial_seeds", "tuning_budget", "tuning_settings") if key in given]
    if given.get("trials") == 1 and useless:
        raise ConfigError(
            f"{names[useless[0]]} is for trials, and --trials 1 makes none: remove it, or ask for more trials."
        )
    remedies = {
        "epochs": "use --tuning-budget", "seed": "use --trial-seeds", "method.name": "name methods by --methods",
        "optimizer.learning_rate": "change that of all, from which the trials start, by --set",
    }  # fmt: skip
    for setting in given.get("tuning_settings", ()):
        key, _ = split_assignment(setting)
        if key in remedies:
            raise ConfigError(f"--tuning-set {setting}: the plan of the comparison decides it; {remedies[key]}.")


def _reference(names: tuple[str, ...], name: str | None, recommended: str, *, plan: Path | None) -> str:
    """The method named by ``--reference``, or else that of the comparison in the folder, the recipe's, or the first."""
    short = {short_name(name): name for name in names}
    if name is None:
        recorded = read_object(plan, "reference")["reference"] if plan is not None and plan.exists() else ""
        return short.get(short_name(str(recorded))) or short.get(recommended) or names[0]
    if short_name(name) not in short:
        raise ConfigError(f"--reference {name!r} is not among the methods.{did_you_mean(name, short)}")
    return short[short_name(name)]


@contextmanager
def _progress(comparison: "ComparisonRun") -> Iterator[Any]:
    """A bar on a terminal and, everywhere, a line for every job that has ended."""
    columns = (TextColumn("jobs"), MofNCompleteColumn(), BarColumn(bar_width=24), TimeElapsedColumn(),
               TextColumn("{task.fields[text]}", markup=False))  # fmt: skip
    with Progress(*columns, console=options.stderr, disable=not options.stderr.is_terminal, transient=True) as bar:
        done, total = comparison.count()
        task = bar.add_task("", total=total, completed=done, text="")

        def ended(job: "Job", result: dict[str, Any]) -> None:
            done, total = comparison.count()
            bar.update(task, completed=done)
            what = f"failed: {result['error']}" if "error" in result else "done"
            if "seconds" in result:
                accuracy = result["accuracy"][comparison.plan.measure]["mean"]
                what = f"{comparison.plan.measure} {100 * accuracy:.1f}, {result['seconds']:.0f} s"
            options.say(f"{done} of {total}: {job.label}: {what}")

        def running(active: list["Job"]) -> None:
            bar.update(task, text="; ".join(job.label for job in active))

        yield ended, running
