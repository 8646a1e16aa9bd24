"""What every method has to do, as a suite of tests that a class inherits: see ``test_conformance``.

    class TestMine(MethodConformance):
        name = "path/to/mine.py"

``python -m tests.support.conformance --write`` adds the losses of 100 steps of every method that has none to
``trajectories.json``. They stay what they are unless a method, a network or the teacher is changed on purpose: then its
line is deleted first.
"""

import copy
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.config import RunConfig
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import open_source
from matrix_ssl.data.loading import Batch
from matrix_ssl.methods import Method, StepOutput, check_output, complete_options, find_method, list_methods
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_lines
from matrix_ssl.training import optim, setup
from matrix_ssl.training.engine import Engine
from matrix_ssl.training.pretraining import PreTraining

TRAJECTORIES = Path(__file__).parents[1] / "golden" / "trajectories.json"
SMALL = {
    "hidden_dim": 32,
    "output_dim": 16,
    "queue_size": 48,
    "slices": 64,
    "sub_batch": 8,
    "prototypes": 24,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}  # of the options, those that a method has
ROWS = 16
STEPS = 100  # of a stored trajectory
# small changes of the images: a few dozen steps then show whether a method keeps its outputs apart
VIEW = {"rotation": 5, "zoom": 0.05, "shear": 0.05, "translation": 0.04, "elastic": 0.2, "gamma": 0.2}


class Learned(NamedTuple):
    """What a short training on handwritten digits wrote."""

    lines: list[dict[str, Any]]

    @property
    def alarms(self) -> list[str]:
        """Of the last line."""
        return [text.partition(":")[0] for text in self.lines[-1].get("alarm", [])]


def views(step: int, n: int = ROWS, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two noisy copies of random images (n, 1, 8, 8), a function of the step."""
    draw = np.random.RandomState(step)  # its numbers are the same in every release
    base = draw.standard_normal((n, 1, 8, 8))
    one, two = (torch.from_numpy(base + 0.3 * draw.standard_normal(base.shape)).to(dtype) for _ in range(2))
    return one, two


def in_class(test: Callable[..., None]) -> Callable[..., None]:
    """A test by itself, so that a mark of one class is not one of all."""

    @functools.wraps(test)
    def call(*arguments: Any, **keywords: Any) -> None:
        test(*arguments, **keywords)

    return call


def assert_same(found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    """Equal bit for bit, through nested mappings."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, Mapping):
            assert_same(found[key], value)
        elif isinstance(value, Tensor):
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
        else:
            assert found[key] == value, key


# of these methods the tests of REPEATED are slow; others have teacher, queue, prototypes, masks or a covariance as well
BRIEF = {
    "barlow_twins", "byol", "dino", "emp_ssl", "kernel_infonce", "lejepa", "m_mae", "matrix_entropy", "mec", "mmcr",
    "simsiam", "vicreg", "w_mse",
}  # fmt: skip
REPEATED = (
    "test_the_seed_decides_everything", "test_a_resumed_run_goes_on_bit_for_bit", "test_a_skipped_step_leaves_no_trace",
    "test_a_last_batch_of_half_the_size", "test_exports_its_encoders", "test_precision_and_memory_format_do_not_matter",
)  # fmt: skip


class MethodConformance:
    """The suite. A subclass says which method, and what cannot be seen from outside."""

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        for name in REPEATED if getattr(cls, "name", None) in BRIEF else ():
            setattr(cls, name, pytest.mark.slow(in_class(getattr(cls, name))))

    name: ClassVar[str]  # as --method takes it
    options: ClassVar[dict[str, Any]] = {}
    silent: ClassVar[
        tuple[str, ...]
    ] = ()  # parameters that the loss does not depend on, such as a bias before BatchNorm
    epochs: ClassVar[int] = 3  # of the short training that shows whether outputs collapse
    learning: ClassVar[dict[str, Any]] = {}  # its options
    careless: ClassVar[dict[str, Any]] = {}  # those that take the safeguard against collapse away

    @property
    def kind(self) -> type[Method]:
        """The class of the method."""
        return find_method(self.name)

    def without_safeguard(self) -> type[Method] | None:
        """The class without what keeps it from collapsing, where options do not take that away."""
        return self.kind if self.careless else None

    def build(self, *, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Method:
        """The method on a tiny network."""
        torch.manual_seed(seed)
        encoder, width = self.encoder()
        known = complete_options(self.kind, {})
        given = {k: v for k, v in SMALL.items() if k in known} | self.options | options
        return self.kind(encoder, width, **complete_options(self.kind, given)).to(dtype)

    def encoder(self) -> tuple[nn.Module, int]:
        """A tiny network for images (n, 1, 8, 8), and its width; with tokens if the method needs them."""
        if self.kind.needs_tokens:
            pytest.importorskip("timm")
            return networks.build_encoder("timm/test_vit", channels=1, image_size=8, patch_size=2, any_size=True)
        return networks.build_encoder("tiny_resnet", channels=1, image_size=8, width=8)

    def features(self, method: Method, view: Tensor) -> Tensor:
        """The features that ``forward`` reports for its first view."""
        return method.encoder(view)

    def frozen_targets(self, method: Method) -> AbstractContextManager[None]:
        """While it is open, targets that a stop-gradient makes are those of the first forward."""
        return nullcontext()

    def optimizer(self, method: Method, name: Any = "sgd", rate: float = 0.01) -> torch.optim.Optimizer:
        """An optimizer over the method's own groups."""
        groups = method.parameter_groups()
        found = optim.build_optimizer(method, name=name, momentum=0.9, weight_decay=1e-4, groups=groups)
        optim.set_learning_rate(found, rate)
        return found

    def step(
        self, method: Method, optimizer: torch.optim.Optimizer, step: int, *, total: int = 10, n: int = ROWS
    ) -> StepOutput:
        """One training step in the manner of ``Engine``."""
        torch.manual_seed(step)
        method.before_step(step, total)
        optimizer.zero_grad()
        output: StepOutput = method(*views(step, n, next(method.parameters()).dtype))
        output.loss.backward()
        optimizer.step()
        method.after_step((step + 1) / total)
        return output

    def forward(self, method: Method, one: Tensor, two: Tensor) -> StepOutput:
        """A forward whose random numbers are always the same."""
        torch.manual_seed(0)
        method.before_step(2, 10)
        return method(one, two)

    def test_output(self) -> None:
        method = self.build()
        one, two = views(0)
        output = self.forward(method, one, two)
        check_output(output, self.name, ROWS)
        assert output.loss.shape == () and output.loss.requires_grad and output.loss.isfinite()
        for value in output.terms.values():
            assert value.shape == () and not value.requires_grad and value.isfinite()
        assert set(method.counters) <= set(output.terms)
        width = method.encoder(one).shape[1]
        assert output.features.shape == (ROWS, width)
        assert output.student.shape == output.teacher.shape and len(output.student) == ROWS
        assert not any(rows.requires_grad for rows in output[2:])
        torch.testing.assert_close(output.features, self.features(method, one).detach())
        for progress in (0.0, 0.5, 1.0):
            assert all(np.isfinite(value) for value in method.schedule(progress).values())
            assert method.schedule(progress).keys().isdisjoint(output.terms)

    def test_the_seed_decides_everything(self) -> None:
        found = []
        for seed in (0, 0, 1):
            method = self.build(seed=seed)
            optimizer = self.optimizer(method)
            losses = [self.step(method, optimizer, step).loss.item() for step in range(3)]
            found.append((losses, method.state_dict()))
        assert found[0][0] == found[1][0] and found[0][0] != found[2][0]
        assert_same(found[1][1], found[0][1])

    def test_a_small_step_lowers_the_loss_by_what_the_gradient_predicts(self) -> None:
        method = self.build()
        trainable = [p for p in method.parameters() if p.requires_grad]
        with self.frozen_targets(method):
            before = self.forward(method, *views(0)).loss
            gradients = torch.autograd.grad(before, trainable)
            square = sum(g.square().sum() for g in gradients)
            with torch.no_grad():
                for p, g in zip(trainable, gradients, strict=True):
                    p -= 1e-6 / square * g
            after = self.forward(method, *views(0)).loss
        assert (before - after).item() == pytest.approx(1e-6, rel=0.01)

    def test_gradient_reaches_all_of_the_student_and_nothing_else(self) -> None:
        method = self.build()
        optimizer = self.optimizer(method)
        self.step(method, optimizer, 0)  # a teacher that differs from its student
        optimizer.zero_grad()
        self.forward(method, *views(1)).loss.backward()
        scale = max(p.grad.abs().max() for p in method.parameters() if p.grad is not None)
        assert set(self.silent) <= {name for name, _ in method.named_parameters()}
        for name, parameter in method.named_parameters():
            if name.startswith("teacher."):
                assert not parameter.requires_grad and parameter.grad is None, name
                continue
            assert parameter.requires_grad and parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert (parameter.grad.abs().max() < 1e-12 * scale) == (name in self.silent), name
        assert not any(buffer.requires_grad for buffer in method.buffers())
        held = [p for group in method.parameter_groups() for p in group["params"]]
        assert len(held) == len({id(p) for p in held})  # every trainable parameter is in one group
        assert {id(p) for p in held} == {id(p) for p in method.parameters() if p.requires_grad}

    def test_more_than_two_views(self) -> None:
        """Three of one size and two small ones; a method of exactly two views says so in its signature."""
        method = self.build()
        one, two = views(0)
        crops = (one, two, views(1)[0], one[..., 2:6, 2:6], two[..., :4, :4])
        try:
            inspect.signature(method.forward).bind(*crops)
        except TypeError:
            pytest.skip("it takes two views")
        method.before_step(2, 10)
        output: StepOutput = method(*crops)
        assert output.student.shape == output.teacher.shape and len(output.student) == ROWS
        output.loss.backward()
        for name, parameter in method.named_parameters():
            assert (parameter.grad is not None and parameter.grad.isfinite().all()) == parameter.requires_grad, name
        before = output.loss.item()
        with torch.no_grad():
            crops[4].mul_(-1)
        assert self.build().forward(*crops).loss.item() != before  # the small ones matter
        method.after_step(0.3)

    @pytest.mark.parametrize(
        "name", ["lars", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "adamw"))]
    )
    def test_a_resumed_run_goes_on_bit_for_bit(self, tmp_path: Path, name: str) -> None:
        method = self.build(dtype=torch.float32)
        optimizer = self.optimizer(method, name)
        for step in range(4):
            self.step(method, optimizer, step)
        written = checkpoint.Checkpoint(4, method.state_dict(), optimizer.state_dict(), {})
        path = checkpoint.save_checkpoint(tmp_path, written)
        expected = [self.step(method, optimizer, step).loss.item() for step in range(4, 8)]

        found = checkpoint.load_checkpoint(path)
        other = self.build(dtype=torch.float32, seed=1)  # nothing of the first one but its checkpoint
        again = self.optimizer(other, name)
        checkpoint.load_strictly(other, found.model, str(path))
        again.load_state_dict(found.optimizer)
        assert [self.step(other, again, step).loss.item() for step in range(4, 8)] == expected
        assert_same(other.state_dict(), method.state_dict())
        assert_same(again.state_dict()["state"], optimizer.state_dict()["state"])
        groups = [json.loads(json.dumps(o.state_dict()["param_groups"])) for o in (again, optimizer)]
        assert groups[0] == groups[1]

    def test_a_skipped_step_leaves_no_trace(self, tmp_path: Path) -> None:
        ends = []
        for with_bad in (False, True):
            method = self.build(dtype=torch.float32)
            engine = Engine(self.training(method), tmp_path)
            shown = np.arange(ROWS)
            good, bad, last = (Batch(step, views(step, dtype=torch.float32), shown, []) for step in (0, 1, 2))
            assert engine.update(good) is not None
            if with_bad:
                engine.task.step = 1
                before = copy.deepcopy((method.state_dict(), engine.task.optimizer.state_dict()["state"]))
                bad.views[1][3, 0, 2, 2] = torch.nan
                assert engine.update(bad) is None
                assert_same(method.state_dict(), before[0])
                assert_same(engine.task.optimizer.state_dict()["state"], before[1])
            engine.task.step = 2
            output = engine.update(last)
            assert output is not None
            ends.append((output.loss.item(), method.state_dict()))
        assert ends[0][0] == ends[1][0]
        assert_same(ends[1][1], ends[0][1])

    def test_a_last_batch_of_half_the_size(self) -> None:
        method = self.build()
        optimizer = self.optimizer(method)
        for step, n in enumerate((ROWS, ROWS // 2, ROWS, 2)):
            output = self.step(method, optimizer, step, n=n)
            assert output.loss.isfinite() and len(output.student) == n
        assert all(value.isfinite().all() for value in method.state_dict().values())

    def test_precision_and_memory_format_do_not_matter(self) -> None:
        one, two = views(0)
        method = self.build()
        expected = self.forward(method, one, two)
        method = method.to(memory_format=torch.channels_last)
        found = self.forward(method, *(x.to(memory_format=torch.channels_last) for x in (one, two)))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        single = self.forward(self.build(dtype=torch.float32), one.float(), two.float())
        assert single.loss.dtype == torch.float32
        torch.testing.assert_close(single.loss.double(), expected.loss, rtol=1e-4, atol=1e-4)

    def test_autocast(self, device: str = "cpu", tolerance: float = 0.1) -> None:
        method = self.build(dtype=torch.float32).to(device)
        one, two = (x.float().to(device) for x in views(0))
        expected = self.forward(method, one, two)
        with torch.autocast(device, dtype=torch.bfloat16):
            found = self.forward(method, one, two)
        assert found.loss.dtype == torch.float32
        assert all(value.dtype == torch.float32 for value in found.terms.values())
        torch.testing.assert_close(found.loss, expected.loss, rtol=tolerance, atol=tolerance)
        found.loss.backward()
        assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
    def test_on_cuda(self) -> None:
        one, two = views(0)
        expected = self.forward(self.build(), one, two)
        found = self.forward(self.build().cuda(), one.cuda(), two.cuda())
        # timm's vision transformer differs by 1.3e-8 there, all else by less than 1e-9
        torch.testing.assert_close(found.loss.cpu(), expected.loss, rtol=1e-7, atol=1e-9)
        self.test_autocast("cuda")

    def test_exports_its_encoders(self, tmp_path: Path) -> None:
        method = self.build(dtype=torch.float32)
        self.step(method, self.optimizer(method), 0)
        names = method.encoder.state_dict().keys()
        assert {f"encoder.{name}" for name in names} <= method.state_dict().keys()
        encoders: list[nn.Module] = [method.encoder]
        if (teacher := method.teacher_encoder()) is not None:
            assert {f"teacher.encoder.{name}" for name in names} <= method.state_dict().keys()  # where runs look
            encoders.append(teacher)
        one, _ = views(0, dtype=torch.float32)
        for encoder in encoders:
            checkpoint.save_weights(tmp_path / "encoder.safetensors", encoder, {})
            tensors, _ = checkpoint.read_safetensors(tmp_path / "encoder.safetensors")
            fresh, width = self.encoder()
            checkpoint.load_strictly(fresh, tensors, "the encoder")
            features = fresh.eval()(one)
            assert features.shape == (ROWS, width) and features.isfinite().all()
            assert torch.equal(features, encoder.eval()(one))
            torch.testing.assert_close(fresh(one[:3]), features[:3])  # an image's features are its own

    @pytest.mark.slow  # but for some classes that have it as a test of their own
    def test_collapse_is_noticed_where_the_safeguard_is_taken_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.check_that_collapse_is_noticed(tmp_path, monkeypatch)

    def check_that_collapse_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A short training raises no alarm, and one without the safeguard does."""
        careless = self.without_safeguard()
        if careless is None:
            pytest.skip("no variant without a safeguard is given")
        folders = [tmp_path / name for name in ("safe", "careless")]
        safe = self.learn(self.kind, folders[0], monkeypatch)
        assert not any(alarm.startswith("Collapse") for alarm in safe.alarms), safe.lines[-1]
        found = self.learn(careless, folders[1], monkeypatch, **self.careless)
        assert any(alarm.startswith("Collapse") for alarm in found.alarms), found.lines[-1]

    @pytest.mark.parametrize("steps", [20, pytest.param(STEPS, marks=pytest.mark.slow)])
    def test_stored_trajectory(self, steps: int) -> None:
        stored = json.loads(TRAJECTORIES.read_text())
        if self.name not in stored:
            pytest.skip("no losses are stored: python -m tests.support.conformance --write")
        np.testing.assert_allclose(self.trajectory(steps), stored[self.name][:steps], rtol=1e-8, atol=1e-8)

    def trajectory(self, steps: int = STEPS, *, order: list[int] | None = None) -> list[float]:
        """The losses of the first of 100 steps on one batch, its rows in another order if one is given."""
        with _double():  # initial weights in double precision are the same on all processors
            method = self.build()
            optimizer = self.optimizer(method, rate=1e-3)
            losses = []
            for step in range(steps):
                method.before_step(step, STEPS)
                optimizer.zero_grad()
                output = method(*(x[order] if order else x for x in views(0)))
                output.loss.backward()
                optimizer.step()
                method.after_step((step + 1) / STEPS)
                losses.append(output.loss.item())
        return losses

    def training(self, method: Method, **settings: Any) -> PreTraining:
        """The pre-training of a method on handwritten digits."""
        source = open_source("digits", split="train", data_root=None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(setup, "build_method", lambda _: method)
            return setup.prepare(
                self.configure(**settings), source=source, device=torch.device("cpu"), display=Display(quiet=True)
            )

    def configure(self, **options: Any) -> RunConfig:
        """Eleven steps an epoch of 128 digits each."""
        base = setup.use_method(find_recipe("demo"), self.name)
        shape = {
            "hidden_dim": 64,
            "output_dim": 64,
            "slices": 64,
            "queue_size": 128,
            "sub_batch": 128,
            "prototypes": 64,
            "decoder_dim": 16,
            "decoder_depth": 1,
            "decoder_heads": 2,
        }
        tokens = ["network.encoder=timm/test_vit", "network.patch_size=2"] if self.kind.needs_tokens else []
        known = complete_options(self.kind, {})
        given = {k: v for k, v in shape.items() if k in known} | self.learning | options
        return setup.complete(
            config.override(base, [
                "batch_size=128", f"epochs={self.epochs}", "network.width=8", "optimizer.learning_rate=0.02",
                "optimizer.warmup_epochs=0", "log_every=3", "precision=float32", "checkpoint_every=1000",
                *tokens,
                *(f"views.{view}.{key}={value}" for view in range(len(base.views)) for key, value in VIEW.items()),
                *(f"method.{key}={value}" for key, value in given.items()),
            ])
        )  # fmt: skip

    def learn(self, kind: type[Method], folder: Path, patch: pytest.MonkeyPatch, **options: Any) -> Learned:
        """A short training of a class with options."""
        settings = self.configure(**options)
        torch.manual_seed(0)
        method = kind(shallow_encoder(), 64, **settings.method.options)
        folder.mkdir()
        self.training(method, **options).train(folder)
        return Learned(read_lines(folder / "metrics.jsonl"))


def shallow_encoder() -> nn.Module:
    """64 features of an image of 8 by 8 pixels: it shows in a few dozen steps whether a method collapses."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64),
    )  # fmt: skip


@contextmanager
def _double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def write_trajectories() -> None:
    """Adds the losses of every method of the package that has none; delete those of a method that was changed."""
    torch.set_num_threads(1)
    found = {}
    stored = json.loads(TRAJECTORIES.read_text())
    for name in list_methods():
        suite = type("Suite", (MethodConformance,), {"name": name})()
        # the suite's options are the defaults of all
        found[name] = stored[name] if name in stored else suite.trajectory()
    lines = ",\n".join(f'"{name}": {json.dumps(losses)}' for name, losses in found.items())
    TRAJECTORIES.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("usage: python -m tests.support.conformance --write")
    write_trajectories()
