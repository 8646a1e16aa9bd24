"""A method of a user that does not keep to the contract of ``Method`` is one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix_ssl import pretrain
from matrix_ssl.errors import ConfigError
from matrix_ssl.methods import Method, StepOutput, check_output, complete_options, create_method
from tests.support.runs import BARE, fail, tiny

SHIFT = torch.ones(2)


class NoForward(Method):
    """Abstract."""


class Alone(Method):
    """Built without an encoder."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *views: Tensor) -> StepOutput:
        raise NotImplementedError


class Forgetful(Alone):
    """Does not keep its encoder."""

    def __init__(self, encoder: nn.Module, feature_dim: int):
        super().__init__()


class Unwritable(Alone):
    """Has an option that is no setting."""

    def __init__(self, encoder: nn.Module, feature_dim: int, *, shift: Any = SHIFT):
        super().__init__()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (NoForward, r"^method\.name='m\.py': NoForward has no forward, which a Method needs\.$"),
        (Alone, r"Alone is built with an encoder and its number of features .*: write def __init__\(self, encoder, fe"),
        (Forgetful, r"Forgetful keeps no encoder: write self\.encoder = encoder in its __init__\.$"),
    ],
)
def test_classes(kind: type[Method], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        create_method(kind, "m.py", nn.Flatten(), 4, {})


def test_an_option_that_a_run_cannot_keep() -> None:
    with pytest.raises(ConfigError, match=r"^method\.shift=tensor\(\[1\., 1\.\]\): an option is a number, text, true"):
        complete_options(Unwritable, {})


ROWS = torch.zeros(3, 2)
LOSS = torch.zeros((), requires_grad=True)
RIGHT = StepOutput(LOSS, {"a": torch.zeros(())}, ROWS, ROWS, ROWS)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (None, r"forward returned a value of type NoneType: return a StepOutput\(loss, terms,"),
        (LOSS, r"forward returned a tensor \(\): return a StepOutput"),
        (RIGHT._replace(loss=0.5), r"a value of type float as loss: a loss is a tensor \(\) with a gradient\.$"),
        (RIGHT._replace(loss=LOSS.repeat(2)), r"a tensor \(2,\) as loss"),
        (RIGHT._replace(loss=LOSS.detach()), r"a tensor \(\) without a gradient as loss"),
        (RIGHT._replace(terms=[LOSS]), r"a value of type list as terms: expected a dictionary"),
        (
            RIGHT._replace(terms={"a": 1.0}),
            r"a value of type float as terms\['a'\]: a term is a tensor",
        ),
        (RIGHT._replace(terms={3: LOSS}), r"as terms\[3\]"),
        (RIGHT._replace(student=ROWS[0]), r"a tensor \(2,\) without a gradient as student: expected a tensor \(3, d\)"),
        (
            RIGHT._replace(teacher=ROWS[:2]),
            r"a tensor \(2, 2\) .* as teacher: expected a tensor \(3, d\)",
        ),
    ],
)
def test_outputs(output: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_output(output, "m.py", 3)


def test_the_right_output_passes() -> None:
    check_output(RIGHT, "m.py", 3)


@pytest.mark.slow
def test_of_a_file_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "from matrix_ssl.methods import Method\n"
        "class Wrong(Method):\n"
        "    def __init__(self, encoder, feature_dim):\n"
        "        super().__init__()\n"
        "        self.encoder = encoder\n"
        "    def forward(self, view1, view2):\n"
        "        return self.encoder(view1).sum()\n"
    )
    words = ["pretrain", "demo", "--method", "m.py", "--out", "r", "--device", "cpu", *tiny()[6:10]]
    message = fail(tmp_path, words, before=BARE, code=2)
    assert message.startswith("method.name='m.py': forward returned a tensor (): return a StepOutput")


def test_a_callback_that_is_no_function() -> None:
    with pytest.raises(ConfigError, match=r"^callback=3: expected a function that takes a line of metrics\.$"):
        pretrain("digits", callback=3)  # type: ignore[arg-type]


def test_a_setting_that_is_named_by_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Unknown setting 1: a setting is named by text, such as 'epochs'\.$"):
        pretrain("digits", settings={1: 2}, out=tmp_path / "r")
