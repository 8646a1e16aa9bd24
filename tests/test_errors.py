"""Sentences of errors."""

from matrix_ssl.errors import some


def test_a_sentence_lists_the_first_names_and_counts_the_rest() -> None:
    assert some([]) == ""
    assert some("abc") == "a, b, c"
    assert some(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
    assert some(["two\nlines", "b", "c"], most=1) == "two\\nlines and 2 more"
