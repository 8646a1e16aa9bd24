"""What the sentence claims: gains and losses that their intervals support, and nothing else."""

import dataclasses
from typing import Any

import pytest

from matrix_ssl.report.comparison.statistics import Estimate
from matrix_ssl.report.worth import words
from matrix_ssl.report.worth.data import Arm, Budget, Data, Difference, Public, Results

ONE, TEN, ALL = "1 label a class", "10 labels a class", "all labels"
TIE = (0.01, -0.02, 0.04)
Triples = dict[str, tuple[float, float, float]]  # mean, low and high by number of labels


def results(adapted: Triples, scratch: Triples, **changes: Any) -> Results:
    """Results with these differences to the frozen public encoder; the file may hold them either way round."""
    budgets = [Budget(str(i), text, i, i) for i, text in enumerate((ONE, TEN, ALL), 1)]
    keys = {one.text: one.key for one in budgets}
    rows = [Difference("adapted_frozen", "public_frozen", keys[text], *d) for text, d in adapted.items()]
    rows += [
        Difference("public_frozen", "scratch_frozen", keys[text], -d[0], -d[2], -d[1]) for text, d in scratch.items()
    ]
    public = Public("timm/x", "abc", "3 tensors", 224)
    return Results(public, budgets, [], differences=rows, **{"seeds": 3, **changes})


@pytest.mark.parametrize(
    ("adapted", "scratch", "expected"),
    [
        pytest.param(
            {ONE: TIE, TEN: (0.031, 0.012, 0.05), ALL: TIE}, dict.fromkeys((ONE, TEN, ALL), (-0.2, -0.25, -0.15)),
            "With 10 labels a class, adapting the public encoder gains 3.1 points [1.2, 5.0] over using it frozen, and "
            "elsewhere no difference is supported; at every number of labels, pre-training from scratch stays up to "
            "20.0 points [15.0, 25.0] behind the frozen public encoder (most with 1 label a class).",
            id="gain and loss",
        ),
        pytest.param(
            dict.fromkeys((ONE, TEN, ALL), TIE), {},
            "Between adapting the public encoder and using it frozen no difference is supported at any number of "
            "labels.",
            id="tie",
        ),
        pytest.param(
            {ONE: (-0.05, -0.08, -0.02), TEN: TIE, ALL: (0.04, 0.01, 0.07)}, {ALL: TIE},
            "With all labels, adapting the public encoder gains 4.0 points [1.0, 7.0] over using it frozen, but with 1 "
            "label a class, it loses 5.0 points [2.0, 8.0] against it, and elsewhere no difference is supported; "
            "between pre-training from scratch and the frozen public encoder no difference is supported at all labels.",
            id="mixed",
        ),
        pytest.param(
            dict.fromkeys((ONE, TEN), (0.0, 0.0, 0.0)), {ONE: (0.1, 0.05, 0.15), ALL: (0.2, 0.15, 0.25)},
            "Between adapting the public encoder and using it frozen no difference is supported at any number of "
            "labels; at every number of labels, pre-training from scratch gains up to 20.0 points [15.0, 25.0] over "
            "the frozen public encoder (most with all labels).",
            id="equal and gain",
        ),
        pytest.param({}, {}, "Nothing has been measured yet.", id="nothing"),
    ],
)  # fmt: skip
def test_the_sentence(adapted: Triples, scratch: Triples, expected: str) -> None:
    assert words.sentence(results(adapted, scratch)) == expected


def test_a_public_encoder_at_two_sizes_is_named_with_them() -> None:
    """A loss that comes from the size of the images is no loss by the adaptation."""
    one = results({ALL: (-0.13, -0.18, -0.09)}, {ALL: (-0.6, -0.64, -0.55)}, image_size=48)
    small = Difference("adapted_frozen", "public_small_frozen", one.differences[0].budget, *TIE)
    arms = [Arm("public", "frozen", 224), Arm("public_small", "frozen", 48)]
    two = dataclasses.replace(one, arms=arms, differences=[*one.differences, small])
    assert words.sentence(two) == (
        "With all labels, adapting the public encoder at 48 pixels loses 13.0 points [9.0, 18.0] against using it "
        "frozen at 224 pixels; between adapting the public encoder at 48 pixels and using it frozen at 48 pixels no "
        "difference is supported at all labels; with all labels, pre-training from scratch stays 60.0 points "
        "[55.0, 64.0] behind the frozen public encoder at 224 pixels."
    )


@pytest.mark.parametrize("low", [-0.01, 0.0])
def test_an_interval_that_includes_zero_supports_nothing(low: float) -> None:
    text = words.sentence(results({ONE: (0.1, low, 0.2), TEN: (-0.1, -0.2, -low)}, {}))
    assert "no difference is supported at any number of labels" in text and "gains" not in text and "loses" not in text


def test_a_zero_has_no_sign() -> None:
    assert words.interval(Estimate(0.0, -0.0001, 0.1)) == "[0.0, 10.0]"
    assert words.interval(Estimate(0.0, -0.051, 0.1)) == "[−5.1, 10.0]"


def test_limits_are_stated() -> None:
    failed = Arm("scratch", "frozen", 8, pretraining=[{"error": "The loss is not finite."}])
    limited = results({}, {}, seeds=1, done=3, total=9, data=Data("x", 80, 20, 10, held_out=True), left_out=["1 % of"])
    notes = words.notes(Results(**{**vars(limited), "arms": [failed]}))
    assert [text.partition(":")[0].partition(".")[0] for text in notes] == [
        "Not complete", "One seed", "The dataset has no test split", "scratch failed", "1 % of",
    ]  # fmt: skip
    assert words.notes(results({}, {})) == []
