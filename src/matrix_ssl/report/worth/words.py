"""What the numbers support, in one sentence: no claim is made if an interval includes 0."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matrix_ssl.report.comparison.statistics import Estimate
from matrix_ssl.report.formats import percent, whole
from matrix_ssl.report.worth.data import Results

By = Mapping[str, Estimate]  # by number of labels, in words, fewest first


class Question(NamedTuple):
    """Whether one way is better than another, as the parts of a sentence."""

    a: str
    b: str
    subject: str
    gains: tuple[str, str]  # what a does, with {} points, and the preposition before b
    loses: tuple[str, str]
    other: str


_GAINS, _LOSES, _STAYS = ("gains {}", "over"), ("loses {}", "against"), ("stays {}", "behind")


def questions(r: Results) -> list[Question]:
    """The questions to the results; a public encoder that was used at two sizes is named with its size."""
    own, same = (f" at {size} pixels" if r.own_size_differs else "" for size in (r.public.image_size, r.image_size))
    adapting = f"adapting the public encoder{same}"
    return [
        Question("adapted_frozen", "public_frozen", adapting, _GAINS, _LOSES, f"using it frozen{own}"),
        Question("adapted_frozen", "public_small_frozen", adapting, _GAINS, _LOSES, f"using it frozen{same}"),
        Question("scratch_frozen", "public_frozen", "pre-training from scratch", _GAINS, _STAYS,
                 f"the frozen public encoder{own}"),
    ]  # fmt: skip


def sentence(results: Results) -> str:
    """What a reader may conclude about adapting the public encoder and about pre-training from scratch."""
    clauses = [clause(one, by) for one in questions(results) if (by := results.difference(one.a, one.b))]
    return capitalised("; ".join(clauses)) + "." if clauses else "Nothing has been measured yet."


def clause(question: Question, by: By) -> str:
    """What the paired differences of two ways support, without an initial capital or a full stop.

    Args:
        by: a minus b by number of labels, in words.
    """
    gains = {text: one for text, one in by.items() if one.sign > 0}
    losses = {text: one for text, one in by.items() if one.sign < 0}
    if not gains and not losses:
        return f"between {question.subject} and {question.other} no difference is supported at {_any(by)}"
    sides = [(verb, side) for verb, side in ((question.gains, gains), (question.loses, losses)) if side]
    (words, side), *more = sides
    text = _claim(question.subject, words, side, by, question.other)
    for words, side in more:
        text += f", but {_claim('it', words, side, by, 'it')}"
    return text if len(gains) + len(losses) == len(by) else f"{text}, and elsewhere no difference is supported"


def _claim(subject: str, words: tuple[str, str], side: By, by: By, other: str) -> str:
    """A gain or a loss, where it occurs, and how large it is at most."""
    verb = f"{words[0]} {words[1]} {other}"
    largest = max(side, key=lambda text: abs(side[text].mean))
    size = _points(side[largest])
    if len(side) == 1:
        return f"with {largest}, {subject} {verb.format(size)}"
    where = "at every number of labels" if len(side) == len(by) else f"with {listed(list(side))}"
    return f"{where}, {subject} {verb.format(f'up to {size}')} (most with {largest})"


def notes(results: Results) -> list[str]:
    """What is missing, failed or limits the conclusions."""
    data, errors = results.data, [(results.label(arm), text) for arm in results.arms for text in arm.errors]
    texts = {
        f"Not complete: {results.done} of {results.total} trainings and evaluations are done. Run the same command to "
        "continue.": results.done < results.total,
        "One seed: the intervals are about the test images alone; a different seed may change the result.":
            results.seeds == 1,
        f"The dataset has no test split: a fifth of each class, {whole(data.test)} images, was held out before any "
        "training and is the test split here.": data.held_out,
        **{f"{label} failed: {text}": True for label, text in errors},
        **{capitalised(text): True for text in results.left_out},
    }  # fmt: skip
    return [text for text, applies in texts.items() if applies]


def reading() -> str:
    """How to read the intervals."""
    return (
        "95 % intervals of the mean over seeds and test images; differences are paired over both. Each interval stands "
        "for itself: of twenty, one misses the truth on average. An interval that includes 0 supports no claim, and is "
        "no proof that two ways are equal."
    )


def listed(texts: Sequence[str]) -> str:
    """``a, b and c``."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def interval(one: Estimate) -> str:
    """Bounds in percentage points."""
    return f"[{percent(one.low)}, {percent(one.high)}]"


def capitalised(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _points(one: Estimate) -> str:
    """The size of a difference and its interval, without the sign of a loss."""
    flipped = one if one.mean >= 0 else Estimate(-one.mean, -one.high, -one.low)
    return f"{percent(flipped.mean)} points {interval(flipped)}"


def _any(by: By) -> str:
    return "any number of labels" if len(by) > 1 else next(iter(by))
