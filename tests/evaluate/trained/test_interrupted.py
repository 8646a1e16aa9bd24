"""Protocols that train, when one of them is interrupted and another one is run in between."""

from pathlib import Path

import pytest

from matrix_ssl.api import evaluation
from matrix_ssl.encoder import architectures
from matrix_ssl.evaluate.trained import protocols
from matrix_ssl.evaluate.trained.fine_tune import FineTune
from matrix_ssl.evaluate.trained.linear_sgd import LinearSGD
from matrix_ssl.training.engine import Engine
from tests.support.runs import make_images


class Killed(BaseException):
    """Ends a process without what it would do at its end."""


def evaluate(folder: Path, protocol: str) -> evaluation.Evaluated:
    settings = protocols.EvaluationSettings(
        linear_sgd=LinearSGD(epochs=1), fine_tune=FineTune(epochs=3, batch_size=8, rates=((0.04, 0.04),))
    )
    return evaluation.evaluate(
        "random/tiny_resnet", str(folder / "photos"), out=folder / "r", protocols=[protocol], settings=settings,
        quiet=True, report=False, device="cpu",
    )  # fmt: skip


def test_a_protocol_that_ends_leaves_the_interrupted_training_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "IMAGE_SIZE", 24)
    for name in ("ant", "bee"):
        make_images(tmp_path / "photos" / name, 10)
    steps: list[int] = []
    update = Engine.update

    def counted(engine: Engine, *arguments: object) -> bool:
        if len(steps) == 4:
            raise Killed
        steps.append(engine.task.step)
        return update(engine, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("matrix_ssl.training.engine._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        patch.setattr(Engine, "update", counted)
        with pytest.raises(Killed):
            evaluate(tmp_path, "fine-tune")
    (folder,) = (tmp_path / "r" / "evaluation").glob("*/training")
    assert list(folder.glob("fine_tune-*/checkpoints/*"))
    evaluate(tmp_path, "linear-sgd")
    assert list(folder.glob("fine_tune-*/checkpoints/*")) and not list(folder.glob("linear_sgd-*"))

    resumed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "update", lambda engine, *rest: resumed.append(engine.task.step) or update(engine, *rest))
        evaluate(tmp_path, "fine-tune")
    assert resumed and resumed[0] > 0
    assert not folder.exists()
