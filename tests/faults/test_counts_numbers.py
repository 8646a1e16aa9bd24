"""Rows of ``counts`` about numbers: samples of the loader, steps that are not finite, and memory over many steps."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from matrix_ssl.errors import TrainingError
from matrix_ssl.training.engine import Engine
from tests.data.test_loading import Lethal, Set, batches, configured
from tests.faults.counts import count
from tests.support import runs
from tests.support.runs import BARE, timeless, tiny
from tests.training.test_engine import STEPS, pretraining

KINDS = ("loss", "gradient", "loss and buffers")


def test_workers_and_parts_give_the_same_samples_and_views() -> None:
    source, expected = Set(), list(batches(Set(), configured()).iterate(0, 6))
    for number in range(count(8)):
        workers, parts = number % 3, (1, 2, 4, 8)[number // 3]
        loaders = [batches(source, configured(workers=workers), rank=rank, world_size=parts) for rank in range(parts)]
        for together, whole in zip(zip(*(one.iterate(0, 6) for one in loaders), strict=True), expected, strict=True):
            assert np.array_equal(np.concatenate([part.indices for part in together]), whole.indices)
            for view, pixels in enumerate(whole.views):
                joined = torch.cat([part.views[view] for part in together])
                torch.testing.assert_close(joined, pixels, rtol=0, atol=0)


def test_killed_workers_lose_and_double_nothing() -> None:
    draw = random.Random(9)
    expected = list(batches(Set(), configured()).iterate(0, 6))
    for _ in range(count(9)):
        step = draw.randrange(6)
        deadly = int(draw.choice(batches(Set(), configured()).samples(step)[1]))
        got = []
        with pytest.raises(TrainingError, match="A data-loading worker died"):
            for batch in batches(Lethal(deadly=deadly), configured(workers=draw.randrange(1, 3))).iterate(0, 6):
                got.append(batch)
        got += batches(Set(), configured(workers=1)).iterate(len(got), 6)
        assert [batch.step for batch in got] == list(range(6))
        for batch, whole in zip(got, expected, strict=True):
            assert np.array_equal(batch.indices, whole.indices)
            assert all(torch.equal(a, b) for a, b in zip(batch.views, whole.views, strict=True))


def spoil(task: Any, step: int, kind: str, value: float) -> None:
    """Puts a value into the loss, into the gradient alone, or into loss and buffers of a step."""
    real = task.compute

    def compute(forward: Any, batch: Any) -> Any:
        output = real(forward, batch)
        if task.step != step:
            return output
        if kind == "gradient":
            output.loss.register_hook(lambda gradient: gradient * value)
            return output
        for buffer in task.module.buffers() if kind == "loss and buffers" else ():
            if buffer.is_floating_point():
                buffer.data.fill_(value)  # past the graph, which needs the old numbers
        return output._replace(loss=output.loss * value)

    task.compute = compute


def tensors(task: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in task.module.state_dict().items()}


def test_steps_that_are_not_finite_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine.update
    for number in range(count(10)):
        draw = random.Random(number)
        (folder := tmp_path / f"{number}").mkdir()
        task, bad = pretraining(folder), draw.randrange(1, 5)
        spoil(task, bad, KINDS[number % len(KINDS)], draw.choice([math.nan, math.inf, -math.inf]))
        seen = []

        def update(self: Any, *rest: Any, bad: int = bad, seen: list[int] = seen) -> Any:
            before, step = tensors(self.task), self.task.step
            output = real(self, *rest)
            if step == bad:
                seen.append(step)
                assert output is None
                assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(self.task).items())
            return output

        monkeypatch.setattr(Engine, "update", update)
        Engine(task, folder).run()
        assert seen == [bad] and task.counters["bad_steps"] == 1
        assert [line["step"] for line in timeless(folder)] == [step for step in range(1, STEPS + 1) if step != bad + 1]
        assert all(tensor.isfinite().all() for tensor in tensors(task).values())


WATCH = """
import json, os, psutil, matrix_ssl.training.engine as e
process, real = psutil.Process(), e.Engine.update
def update(self, *rest):
    if self.task.step in ({early}, {late}):
        with open("watched.jsonl", "a") as file:
            used = process.memory_info().rss
            file.write(json.dumps({{"memory": used, "handles": process.num_fds()}}) + "\\n")
    return real(self, *rest)
e.Engine.update = update
"""


@pytest.mark.slow  # training/test_setup.py has some steps
def test_many_steps_need_no_more_memory_nor_handles(tmp_path: Path) -> None:
    steps = count(16)
    epochs = -(-steps // 22)
    watch = WATCH.format(early=steps // 3, late=steps - 2)
    words = tiny("log_every=50", "checkpoint_every=100", epochs=epochs)
    assert runs.start(tmp_path, words, before=f"{BARE}\n{watch}").wait(1200).code == 0
    early, late = (json.loads(line) for line in (tmp_path / "watched.jsonl").read_text().splitlines())
    assert late["handles"] == early["handles"]
    assert late["memory"] < 1.02 * early["memory"]
