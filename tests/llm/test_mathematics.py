"""Answers of MATH: how they are found and compared, and a model that answers them."""

import json

import pytest

from matrix_ssl.errors import DataError
from matrix_ssl.llm.mathematics import answer_of, is_equal, score_math

pytest.importorskip("lm_eval")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"So $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"First \boxed{3}, then \boxed{\sqrt{\frac{2}{3}}}.", r"\sqrt{\frac{2}{3}}"),
        (r"The result is \fbox{5}.", "5"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"So $\boxed 5$, and not 6 $ more", "5"),
        (r"So \boxed\frac{1}{2}.", r"\frac{1}{2}"),
        (r"First \boxed 5$ then \boxed{7}", "7"),
        (r"\boxed{7} but earlier \boxed 5$", "5"),
        (r"\boxed5 of {x}", "5"),
        (r"\boxed{3}, or \boxed{4", "3"),
        ("The answer is: 4. \\boxed{5", "4. \\boxed{5"),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed", None),
        (r"\boxedtext{5}", None),
        ("It is 4.\nThe answer is: 4.", "4"),
        ("3 + 4 = 7\n#### 7", "7"),
        ("I do not know", None),
    ],
)
def test_the_answer_of_a_solution(solution, answer):
    assert answer_of(solution) == answer


def test_equal_answers():
    for one, other in (
        (r"\frac12", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (r"10\%", "10"),
        (r"x = 5", "5"),
        ("1 2", "12"),
    ):
        assert is_equal(one, other)
    for one, other in (("1", "2"), (r"\frac{1}{2}", r"\frac{2}{1}")):
        assert not is_equal(one, other)


def test_a_model_that_answers(tmp_path):
    from matrix_ssl.llm.data.question_files import read_rows
    from tests.support import llm_toys

    file = tmp_path / "math.jsonl"
    rows = [{"problem": "1 + 1?", "solution": r"\boxed{2}"}, {"problem": "1 + 2?", "solution": r"\boxed{3}"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"template": "plain", "columns": ("problem", "solution"), "max_new_tokens": 4}
    score = score_math(llm_toys.llama(), llm_toys.tokenizer(), read_rows(str(file)), **settings)
    assert [answer.gold for answer in score.answers] == ["2", "3"] and score.accuracies["math"] in (0, 0.5, 1)
    assert score.tokens_per_second > 0
    file.write_text(json.dumps({"problem": "1?", "solution": "no answer"}) + "\n")
    with pytest.raises(DataError, match=r"The answer to problem 1 ends in 'no answer': it needs \\boxed"):
        score_math(llm_toys.llama(), llm_toys.tokenizer(), read_rows(str(file)), **settings)
