"""The result of a comparison in a sentence, and what limits it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matrix_ssl.report.comparison.data import Comparison, Group
from matrix_ssl.report.comparison.statistics import SIGNIFICANT, Pair
from matrix_ssl.report.formats import device_name, percent, points, whole


def verdict(c: Comparison) -> list[str]:
    """A sentence about the main measure for each group: the best entry, the second, and their difference."""
    return [text for group in c.groups() if (text := _best(c, group))] or ["Nothing has been measured yet."]


def p_value(p: float) -> str:
    """``p = 0.012``; a value that would be rounded to the limit is reported as below it."""
    if p < 0.001:
        return "p < 0.001"
    if p < SIGNIFICANT and round(p, 3) >= SIGNIFICANT:
        return f"p < {SIGNIFICANT}"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def notes(c: Comparison) -> list[str]:
    """What is missing, has failed or limits the conclusions; empty if nothing does."""
    failed = [f"{entry.label}: {entry.remark}." for entry in c.entries if entry.failures]
    trials = sum(trial.error is not None for trial in c.trials)
    differences = [d for entry in c.entries for m in c.measures if (d := c.difference(entry, m.key))]
    differences += [pair.difference for group in c.groups() for pair in c.pairs(group).values()]
    bad_steps = {entry.label: sum(run.bad_steps for run in entry.runs) for entry in c.entries}
    devices = list(dict.fromkeys(name for row in c.results.rows if (name := _device(row.environment))))
    versions = list(dict.fromkeys(text for row in c.results.rows if (text := _versions(row.environment))))
    texts = {
        f"The comparison is not complete: {c.done} of {c.planned} runs are done. Run the same command to continue.":
            c.done < c.planned,
        **dict.fromkeys(failed, True),
        f"Failed trials of tuning: {trials}.": trials,
        "One seed only: there is no spread, no interval and no test; a different seed may change the ranking.":
            c.seeds == 1,
        "Two seeds only: intervals are wide, and few differences can be distinguished from chance.": c.seeds == 2,
        "Some methods lack seeds that others have: means are over the seeds of each, differences over those of both.":
            _unequal(c),
        "A difference that is the same for every seed has no interval, since Student's needs a spread; its p value is "
        "that of the sign test.": any(d.n > 1 and d.low is None for d in differences),
        f"Steps skipped because loss or gradient was not finite: {_counts(bad_steps)}.": any(bad_steps.values()),
        f"The runs used different devices, so their times are not comparable: {', '.join(devices)}.": len(devices) > 1,
        f"The runs used different versions, which may contribute to their differences: {'; '.join(versions)}.":
            len(versions) > 1,
    }  # fmt: skip
    return [text for text, applies in texts.items() if applies]


def _device(environment: Mapping[str, Any]) -> str:
    """The name of a run's GPU or, if it has none, of its processor; empty if it is not known."""
    processor = environment.get("processor") if environment.get("device") == "cpu" else None
    return str(processor or "") or device_name(environment)


def _versions(environment: Mapping[str, Any]) -> str:
    """The versions of a run's code, as far as they are known."""
    names = {"matrix_ssl": "matrix-ssl", "commit": "commit", "torch": "PyTorch"}
    return ", ".join(f"{name} {environment[key]}" for key, name in names.items() if environment.get(key))


def _unequal(c: Comparison) -> bool:
    """Whether entries that are ranked against each other have been measured with different seeds."""
    measured = ([e.scores(c.main.key).keys() for e in group.entries] for group in c.groups())
    return any(a != b for seeds in measured for a, b in pairwise(filter(None, seeds)))


def _best(c: Comparison, group: Group) -> str:
    ranking = [(entry, s) for entry in c.ranked if entry in group.entries and (s := entry.summary(c.main.key))]
    if not ranking:
        return ""
    (first, best), *others = ranking
    images = f" of {whole(c.results.data.test)} test images" if c.results.data.test else ""
    text = f"Best {c.main.heading} accuracy at {group.title}: {first.label} with {percent(best.mean)}%{images}"
    if not others:
        return f"{text}; no other method has been measured yet."
    second, score = others[0]
    seeds = max(best.n, score.n)
    certainty = ", ".join(_certainty(c.pair(group, first, second), usual=seeds))
    return f"{text}, then {second.label} with {percent(score.mean)}% ({certainty})."


def _certainty(pair: Pair | None, *, usual: int) -> Sequence[str]:
    """The difference between two entries with interval and p value, as far as their common seeds allow.

    The number of these is given if it is not ``usual``.
    """
    if pair is None:
        return ["no common seed"]
    d = pair.difference
    over = f" over {d.n} common seeds" if 1 < d.n < usual else ""
    difference = f"difference {points(d.mean)} points{over}"
    if pair.adjusted_p is None:
        return [difference, "one common seed"]
    interval = [] if d.low is None or d.high is None else [f"95% interval {points(d.low)} to {points(d.high)}"]
    adjusted = f", adjusted by Holm's method over {pair.tests} pairs" if pair.tests > 1 else ""
    return [difference, *interval, p_value(pair.adjusted_p) + adjusted]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{label} {whole(count)}" for label, count in counts.items() if count)
