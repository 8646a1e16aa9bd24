"""What came out of a run, in words and as a table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matrix_ssl.report.formats import whole
from matrix_ssl.report.run.data import RunData, finite_number, mapping


@dataclass(frozen=True)
class Measure:
    """A column of the comparison: its key in summary.json, its heading, and how a sentence begins with it."""

    key: str
    heading: str
    sentence: str


@dataclass(frozen=True)
class Baseline:
    """A row of the comparison: its key in summary.json, its heading, and its name in a sentence with the verb."""

    key: str
    heading: str
    subject: str
    verb: str


MEASURES = (
    Measure("low_shot_1", "1 label", "With a single label for each class"),
    Measure("low_shot_5", "5 labels", "With five labels for each class"),
    Measure("low_shot_10", "10 labels", "With ten labels for each class"),
    Measure("linear", "linear", "With all labels and a linear classifier"),
    Measure("knn_1", "1-NN", "By the label of the nearest neighbour"),
    Measure("knn_20", "20-NN", "By a vote of the 20 nearest neighbours"),
)
BASELINES = (
    Baseline("raw_pixels", "raw pixels", "raw pixels", "reach"),
    Baseline("random_network", "untrained network", "the untrained network", "reaches"),
)


@dataclass(frozen=True)
class Score:
    """An accuracy between 0 and 1: mean and standard deviation over random draws."""

    mean: float
    deviation: float
    draws: int


@dataclass(frozen=True)
class Alarm:
    """Sentences of one wording: the last of them, how often it came and between which steps."""

    text: str
    count: int
    first: int
    last: int


@dataclass(frozen=True)
class Cell:
    """An accuracy in percent; empty when it was not measured."""

    heading: str
    mean: str
    deviation: str
    best: bool


def verdict(data: RunData) -> str:
    """One or two sentences with the numbers that matter most."""
    evaluation = mapping(data.summary.get("evaluation"))
    for measure in MEASURES:
        score = _score(evaluation, measure.key)
        if score is not None:
            return _verdict_on(data.summary, measure, score)
    rank = data.curve("effective_rank", "effective rank")
    if rank is None:
        return "Nothing has been measured yet."
    spectra = data.spectra()
    labels = data.arrays.get("map_labels")
    labelled = labels is None or bool((labels >= 0).any())
    why = "Not evaluated yet." if labelled else "These images have no labels to measure accuracy with."
    of = f" of at most {len(spectra[-1][1])}" if spectra else ""
    return (
        f"{why} The effective rank of the features went from {rank.y[0]:.3g} to {rank.y[-1]:.3g}{of} "
        f"between steps {whole(rank.x[0])} and {whole(rank.x[-1])}."
    )


def _verdict_on(summary: Mapping[str, Any], measure: Measure, score: Score) -> str:
    baselines = mapping(summary.get("baselines"))
    scores = {b: _score(mapping(baselines.get(b.key)), measure.key) for b in BASELINES}
    known = {b: found for b, found in scores.items() if found is not None}
    test = finite_number(mapping(summary.get("evaluated_on")).get("test"))
    images = f"the {whole(test)} test images" if test else "the test images"
    text = f"{measure.sentence}, the frozen encoder classifies {100 * score.mean:.1f}% of {images} correctly"
    if not known:
        return text + "; there are no baselines to compare it with."
    text += "; " + " and ".join(f"{b.subject} {b.verb} {100 * other.mean:.1f}%" for b, other in known.items())
    nearest, best = max(known.items(), key=lambda item: item[1].mean)
    gain, spread = score.mean - best.mean, max(score.deviation, best.deviation)
    points, name = f"{abs(100 * gain):.1f} points", nearest.subject
    if abs(gain) <= spread:
        return f"{text}. The difference from {name} ({points}) is within the spread over the draws: no clear gain."
    if gain > 0:
        return f"{text}. That is {points} more than {name}: the training has learnt something useful."
    return f"{text}. That is {points} less than {name}: the training did not help."


def _score(scores: Mapping[str, Any], key: str) -> Score | None:
    entry = mapping(scores.get(key))
    mean = finite_number(entry.get("mean"))
    if mean is None:
        return None
    return Score(mean, finite_number(entry.get("sd")) or 0.0, int(finite_number(entry.get("n")) or 1))


def comparison(summary: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    """Rows of the table: name and one cell for each measure; empty when nothing was evaluated."""
    baselines = mapping(summary.get("baselines"))
    rows = {"this encoder": mapping(summary.get("evaluation"))}
    if not rows["this encoder"]:
        return []
    rows |= {b.heading: mapping(baselines.get(b.key)) for b in BASELINES}
    scores = {name: [_score(values, m.key) for m in MEASURES] for name, values in rows.items()}
    best = [max((_percent(s) for s in column if s), default=-1.0) for column in zip(*scores.values(), strict=True)]
    return [
        (name, [_cell(m.heading, s, top) for m, s, top in zip(MEASURES, row, best, strict=True)])
        for name, row in scores.items()
    ]


def _percent(score: Score) -> float:
    return round(100 * score.mean, 1)


def _cell(heading: str, score: Score | None, best: float) -> Cell:
    if score is None:
        return Cell(heading, "–", "", False)
    deviation = f"± {100 * score.deviation:.1f}" if score.draws > 1 else ""
    return Cell(heading, f"{_percent(score):.1f}", deviation, _percent(score) == best)


def comparison_note(summary: Mapping[str, Any]) -> str:
    """How to read the table: what the numbers are, over how many draws and images."""
    evaluation, on = mapping(summary.get("evaluation")), mapping(summary.get("evaluated_on"))
    draws = {score.draws for m in MEASURES if (score := _score(evaluation, m.key)) and score.draws > 1}
    text = "Test images classified correctly from frozen features, in percent"
    if draws:
        counts = " or ".join(str(n) for n in sorted(draws))
        text += f"; mean ± standard deviation over {counts} random draws of the labelled images"
    train, test, classes = (finite_number(on.get(key)) for key in ("train", "test", "classes"))
    if train and test:
        text += f". {on.get('name', 'Data')}: {whole(train)} images with labels to learn from, {whole(test)} to test"
    if classes:
        text += f"; {whole(classes)} classes, so guessing gives {100 / classes:.1f}%"
    return (
        f"{text}. 1-NN and 20-NN: votes of the most similar images, by cosine. The untrained network is the same "
        "architecture with random weights. The best of each column is bold."
    )


def alarms(lines: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """Alarms of the log; sentences that differ only in their numbers are one alarm."""
    found: dict[str, Alarm] = {}
    for line in lines:
        sentences = line.get("alarm")
        for text in [sentences] if isinstance(sentences, str) else sentences or []:
            wording = re.sub(r"\d[\d.,e+-]*", "0", str(text))
            old = found.get(wording)
            first, count = (old.first, old.count) if old else (line["step"], 0)
            found[wording] = Alarm(str(text), count + 1, first, line["step"])
    return list(found.values())
