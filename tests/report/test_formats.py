"""Numbers as text."""

import pytest

from matrix_ssl.report.formats import fixed, number, percent, points, rate
from matrix_ssl.report.similarity import matrix_table
from matrix_ssl.report.tables import Difference


@pytest.mark.parametrize("value", [-0.0, 0.0, 0.0004, -0.0004, 1e-30, -1e-30])
def test_what_rounds_to_zero_has_no_sign(value: float) -> None:
    assert percent(value) == percent(value, sign="+") == "0.0"
    assert points(value / 100) == points(value / 100, sign="+") == "0.00"
    assert fixed(value, 0, sign="+") == "0"


def test_other_numbers_have_the_signs_that_are_asked_for() -> None:
    assert (percent(0.1, sign="+"), percent(-0.1), percent(0.0005, sign="+")) == ("+10.0", "−10.0", "+0.1")
    assert (points(-0.1), number(-0.0), number(-1e-20)) == ("−10.00", "0", "−1e−20")


def test_a_difference_of_next_to_nothing() -> None:
    assert str(Difference(-0.0002, (-0.01, 0.0003))) == "0.0 points (−1.0 to 0.0)"


def test_a_similarity_just_below_zero() -> None:
    """As that of unrelated checkpoints by the unbiased CKA."""
    table = matrix_table([[1.0, -0.002], [-0.002, 1.0]], ["a", "b"], ["a", "b"], "")
    assert list(table.columns[2].cells) == ["0.00", "1.00"]


def test_a_slow_training_has_a_rate() -> None:
    assert [rate(value) for value in (None, 0.04, 0.4, 1.96, 9.94, 10.9, 12345.6)] == [
        "", "0.04", "0.4", "2", "9.9", "10", "12,345",
    ]  # fmt: skip
