"""What a comparison found and what a reader must know about it, in sentences. Imports no torch."""

from collections.abc import Mapping, Sequence

from matrix_ssl.report.comparison.data import Arm, Comparison, Group, Summary, items
from matrix_ssl.report.comparison.statistics import Pair, pairwise
from matrix_ssl.report.run.data import finite_number, mapping
from matrix_ssl.report.run.figures import whole

SIGNIFICANT = 0.05  # an adjusted p value below counts as a difference


def verdict(c: Comparison) -> list[str]:
    """One sentence on the main measure for each group of arms, and one on the place of the reference."""
    groups = [group for group in c.groups() if any(arm.summary(c.main.key) for arm in group.arms)]
    if not groups:
        return ["Nothing has been measured yet."]
    return [text for i, group in enumerate(groups) for text in _verdict_on(c, group, named=i > 0)]


def pairs(c: Comparison, group: Group) -> dict[tuple[str, str], Pair]:
    """The paired differences of the main measure within a group, by labels."""
    return pairwise({arm.label: arm.scores(c.main.key) for arm in group.arms})


def better(pair: Pair | None) -> bool:
    """Whether the first arm of a pair is significantly better than the second."""
    if pair is None or pair.adjusted_p is None:
        return False
    return pair.adjusted_p < SIGNIFICANT and pair.difference.mean > 0


def _verdict_on(c: Comparison, group: Group, *, named: bool) -> list[str]:
    ranking = [(arm, s) for arm in c.ranked if arm in group.arms and (s := arm.summary(c.main.key))]
    (first, best), *others = ranking
    opening = f"At {group.title}, {c.main.sentence[0].lower()}{c.main.sentence[1:]}" if named else c.main.sentence
    reach = f"{100 * best.mean:.1f}% of {_images(c)}"
    if not others:
        return [f"{opening}, {first.label} classifies {reach} correctly; no other method has been measured yet."]
    second, next_best = others[0]
    found = pairs(c, group)
    pair = found.get((first.label, second.label))
    if round(best.mean - next_best.mean, 8) == 0:
        text = f"{opening}, {first.label} and {second.label} are first alike: both classify {reach} correctly"
    else:
        behind = f"{second.label} {_second(next_best, pair)}"
        text = f"{opening}, {first.label} is first: it classifies {reach} correctly, {behind}"
    sentences = [f"{text}; {_certainty(c, first, [arm for arm, _ in others], found)}."]
    if c.reference and first is not c.reference:
        sentences += _place_of_reference(c.reference, ranking)
    return sentences


def _images(c: Comparison) -> str:
    test = finite_number(mapping(c.results.get("data")).get("test"))
    return f"the {whole(test)} test images" if test else "the test images"


def _second(score: Summary, pair: Pair | None) -> str:
    """The accuracy of the second, and by how much it is behind over common seeds."""
    text = f"{100 * score.mean:.1f}%"
    if pair is None or pair.difference.low is None or pair.difference.high is None:
        return text
    low, high = points(pair.difference.low), points(pair.difference.high)
    return f"{text} (difference {points(pair.difference.mean)} points, 95% interval {low} to {high})"


def _certainty(c: Comparison, first: Arm, others: Sequence[Arm], found: Mapping[tuple[str, str], Pair]) -> str:
    """Whether the lead over the others is more than chance, or that it cannot be said."""
    seeds = max((p.difference.n if (p := found.get((first.label, o.label))) else 0) for o in others)
    if seeds < 2:
        count = "without a common seed" if seeds == 0 else "with one seed" if c.seeds == 1 else "with one common seed"
        return f"{count} nothing can be said about whether this order would repeat"
    open_to = [other.label for other in others if not better(found.get((first.label, other.label)))]
    clear = len(others) - len(open_to)
    if not open_to:
        against = "the other" if clear == 1 else f"all {clear} others"
        return f"that it is better than {against} is significant (paired t test, Holm-adjusted p < {SIGNIFICANT})"
    if clear == 0:
        pairs = (found.get((first.label, other.label)) for other in others)
        least = min(pair.adjusted_p for pair in pairs if pair and pair.adjusted_p is not None)
        return (
            f"over {seeds} seeds no lead is significant when all pairs of methods are tested at once (paired t tests, "
            f"Holm-adjusted p at least {least:.2g})"
        )
    over = listed(open_to) if len(open_to) <= 3 else f"{len(open_to)} of the {len(others)} others"
    rest = "the other one" if clear == 1 else f"the other {clear}"
    test = f"paired t test, Holm-adjusted p < {SIGNIFICANT}"
    return f"the lead over {over} is not significant, that over {rest} is ({test})"


def _place_of_reference(reference: Arm, ranking: Sequence[tuple[Arm, Summary]]) -> list[str]:
    for place, (arm, score) in enumerate(ranking, start=1):
        if arm is reference:
            return [f"{arm.label}, the reference, is number {place} of {len(ranking)} with {100 * score.mean:.1f}%."]
    return [f"{reference.label}, the reference, has no result yet."]


def points(difference: float, *, sign: str = "") -> str:
    """A difference of accuracies in percentage points, with a true minus sign; zero has no sign."""
    text = f"{100 * difference:{sign}.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def notes(c: Comparison) -> list[str]:
    """What is missing, failed or limits the conclusions; empty when nothing is."""
    return [text for text in (
        _progress(c), *_failed(c), _seeds(c), _equal_differences(c), _bad_steps(c), _devices(c), _unreadable(c),
    ) if text]  # fmt: skip


def _progress(c: Comparison) -> str:
    if c.planned is None or c.done >= c.planned:
        return ""
    return f"The comparison is not complete: {c.done} of {c.planned} runs are done. The same command goes on."


def _failed(c: Comparison) -> list[str]:
    texts = []
    for arm in c.arms:
        if arm.failures:
            what = f"{len(arm.failures)} of {len(arm.failures) + len(arm.runs)} failed"
            rest = "; its means cover the others" if arm.runs else ""
            texts.append(f"{arm.label}: {what}{rest}.")
    if c.tuning_failures:
        count = len(c.tuning_failures)
        texts.append(f"Tuning: {count} {'trial' if count == 1 else 'trials'} failed.")
    return texts


def _seeds(c: Comparison) -> str:
    if c.seeds == 1:
        return "One seed only: there is no spread, no interval and no test, and another seed may turn the order."
    if c.seeds == 2:
        return "Two seeds only: intervals are wide, and hardly any difference can be told from chance."
    return ""


def _equal_differences(c: Comparison) -> str:
    found = [d for arm in c.arms if (d := c.difference(arm, c.main.key)) and d.n > 1 and d.low == d.high and d.mean]
    if not found:
        return ""
    return "A difference that is the same for every seed has an interval without width; its p value is the sign test's."


def _bad_steps(c: Comparison) -> str:
    arms = {arm.label: sum(run.bad_steps for run in arm.runs) for arm in c.arms}
    bad = [f"{label} {whole(count)}" for label, count in arms.items() if count]
    return f"Steps left out because loss or gradient was not finite: {', '.join(bad)}." if bad else ""


def _devices(c: Comparison) -> str:
    rows = [mapping(row.get("environment")) for row in items(c.results.get("rows"))]
    names = list(dict.fromkeys(str(row["device_name"]) for row in rows if row.get("device_name")))
    return f"The runs were made on different devices, so times do not compare: {listed(names)}." if names[1:] else ""


def _unreadable(c: Comparison) -> str:
    return f"Rows of compare.json left out because they cannot be read: {c.unreadable}." if c.unreadable else ""
