"""The learning-rate schedule and what the optimizers hold."""

import numpy as np
import pytest
import torch
from torch import nn

from matrix_ssl.config import override
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import open_source
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.display import Display
from matrix_ssl.training import setup
from matrix_ssl.training.engine import Engine
from matrix_ssl.training.optim import LARS, build_optimizer, learning_rate, load_state, set_learning_rate
from tests.support.runs import TINY


def rates(total, warmup, peak=0.3):
    return np.array([learning_rate(s, total_steps=total, warmup_steps=warmup, peak=peak) for s in range(total)])


def test_warms_up_linearly_to_the_peak_then_falls_on_half_a_cosine():
    found = rates(100, 10)
    np.testing.assert_allclose(np.diff(found[:11]), 0.3 / 11)
    assert found[0] == pytest.approx(0.3 / 11)
    assert found.argmax() == 10
    assert found[10] == 0.3
    np.testing.assert_allclose(found[10:], 0.15 * (1 + np.cos(np.pi * np.arange(90) / 90)))
    assert learning_rate(100, total_steps=100, warmup_steps=10, peak=0.3) == pytest.approx(0)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 2), (5, 0), (5, 5)])
def test_every_step_of_a_short_run_has_a_rate(total, warmup):
    found = rates(total, warmup)
    assert (found > 0).all()
    assert (found <= 0.3).all()


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_holds_the_trainable_parameters_with_weight_decay_on_all(name, kind):
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1).requires_grad_(False))
    optimizer = build_optimizer(module, name=name, momentum=0.8, weight_decay=0.01)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in module[:2].parameters()}
    assert group["weight_decay"] == 0.01
    assert name == "adamw" or group["momentum"] == 0.8


def test_set_learning_rate_is_what_the_next_step_uses():
    module = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(module, name="sgd", momentum=0.0, weight_decay=0.0)
    before = module.weight.item()
    for rate in (0.0, 0.5):
        set_learning_rate(optimizer, rate)
        module.weight.grad = torch.ones(1, 1)
        optimizer.step()
        assert module.weight.item() == pytest.approx(before - rate)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_loaded_moments_have_the_layout_of_their_parameters(kind, tmp_path):
    """Fused, as on a GPU: where layouts differ it fails there, and on a CPU exchanges the numbers."""
    constants = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 2, 2), (5,), (4, 3)]
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]

    def step(optimizer, parameters, number):
        for parameter, gradient in zip(parameters, gradients[number], strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()

    def laid_out(tensor):
        return nn.Parameter(
            tensor.detach().to(memory_format=torch.channels_last, copy=True)
            if tensor.ndim == 4
            else tensor.detach().clone()
        )

    parameters = [laid_out(torch.randn(shape, generator=generator)) for shape in shapes]
    whole = kind(parameters, lr=0.1, fused=True, **constants)
    step(whole, parameters, 0)
    file = checkpoint.save_checkpoint(tmp_path, checkpoint.Checkpoint(1, {}, whole.state_dict(), {}))
    copies = [laid_out(parameter) for parameter in parameters]
    again = kind(copies, lr=0.0, fused=True, **constants)
    load_state(again, checkpoint.load_checkpoint(file).optimizer)
    for number in (1, 2):
        step(whole, parameters, number)
        step(again, copies, number)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(copies, parameters, strict=True))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_training_that_moves_to_a_different_device_computes_in_the_way_of_that_device(kind):
    def optimizer(**way):
        module.weight.grad = torch.ones_like(module.weight)
        return kind(module.parameters(), lr=0.1, **way)

    module = nn.Linear(3, 2, bias=False)
    there = optimizer(fused=True)  # as on a GPU
    there.step()
    here = optimizer(foreach=False)
    load_state(here, there.state_dict())
    assert (here.param_groups[0]["fused"], here.param_groups[0]["foreach"]) == (None, False)
    here.step()
    load_state(there, here.state_dict())
    assert (there.param_groups[0]["fused"], there.param_groups[0]["foreach"]) == (True, None)
    there.step()


class TestLARS:
    """Against the loop of the paper, in NumPy."""

    @staticmethod
    def textbook(weights, gradients, *, lr, momentum, weight_decay, trust):
        """You, Gitman and Ginsburg, 2017, algorithm 1, with the exclusions of BYOL; one array a parameter."""
        weights, speeds = [w.copy() for w in weights], [np.zeros_like(w) for w in weights]
        for step in gradients:
            for i, g in enumerate(step):
                if weights[i].ndim > 1:
                    g = g + weight_decay * weights[i]
                    norm, size = (np.sqrt(sum(x * x for x in array.ravel())) for array in (weights[i], g))
                    if norm > 0 and size > 0:
                        g = trust * norm / size * g
                speeds[i] = momentum * speeds[i] + g
                weights[i] = weights[i] - lr * speeds[i]
        return weights

    @staticmethod
    def problem(seed=0, steps=6):
        """A weight, a bias, a convolution, a scalar and a weight of zeros; and gradients."""
        draw = np.random.default_rng(seed)
        shapes = [(3, 4), (3,), (2, 3, 2, 2), (), (2, 2), (2, 3)]
        weights = [draw.standard_normal(shape) for shape in shapes]
        weights[4] = np.zeros((2, 2))
        gradients = [[draw.standard_normal(shape) for shape in shapes] for _ in range(steps)]
        for step in gradients:
            step[5] = np.zeros((2, 3))  # with weight decay zero its size is zero
        return weights, gradients

    @staticmethod
    def apply(optimizer, parameters, gradients):
        for step in gradients:
            for p, g in zip(parameters, step, strict=True):
                p.grad = torch.as_tensor(g, dtype=p.dtype).clone()
            optimizer.step()

    @pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_several_steps_are_those_of_the_paper(self, momentum, weight_decay):
        weights, gradients = self.problem()
        settings = {"lr": 0.3, "momentum": momentum, "weight_decay": weight_decay, "trust": 0.02}
        parameters = [nn.Parameter(torch.as_tensor(w).clone()) for w in weights]
        self.apply(LARS(parameters, **settings), parameters, gradients)
        for p, expected in zip(parameters, self.textbook(weights, gradients, **settings), strict=True):
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-13)

    def test_biases_are_those_of_sgd(self):
        results = []
        for build in (lambda p: LARS(p, lr=0.1, momentum=0.9, weight_decay=1.0),
                      lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)):  # fmt: skip
            bias = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
            self.apply(build([bias]), [bias], [[[0.5, 1.0]], [[-1.0, 0.0]], [[2.0, 2.0]]])
            results.append(bias.detach())
        torch.testing.assert_close(*results, rtol=1e-15, atol=0)

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_with_vectors_it_is_the_larc_of_apex(self, momentum):
        """Without weight decay and without clipping: every tensor is scaled, a norm of zero excepted."""
        weights, gradients = self.problem()
        weights[1] = np.zeros(3)  # a bias as it starts
        expected, speeds = [w.copy() for w in weights], [np.zeros_like(w) for w in weights]
        for step in gradients:
            for w, g, speed in zip(expected, step, speeds, strict=True):
                norm, size = np.linalg.norm(w), np.linalg.norm(g)
                if norm != 0 and size != 0:
                    g = g * (0.001 * norm / (size + 1e-8))
                speed[...] = momentum * speed + g
                w -= 30.0 * speed
        parameters = [nn.Parameter(torch.as_tensor(w).clone()) for w in weights]
        groups = [{"params": parameters, "scale_vectors": True}]
        optimizer = build_optimizer(nn.Identity(), name="lars", momentum=momentum, weight_decay=0.0, groups=groups)
        set_learning_rate(optimizer, 30.0)
        self.apply(optimizer, parameters, gradients)
        for p, other in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), other, rtol=1e-6, atol=1e-6)

    def test_the_first_step_has_the_length_of_the_trust_coefficient(self):
        for scale in (1e-6, 1.0, 1e6):
            weight = nn.Parameter(torch.full((2, 2), 3.0, dtype=torch.float64))
            self.apply(LARS([weight], lr=0.5), [weight], [[scale * torch.ones(2, 2, dtype=torch.float64)]])
            assert (6 - weight.detach().norm()).item() == pytest.approx(0.5 * 0.001 * 6)

    def test_parameters_without_gradient_stay(self):
        parameters = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
        optimizer = LARS(parameters, lr=1.0, weight_decay=1.0)
        parameters[0].grad = torch.ones(2, 2)
        optimizer.step()
        assert torch.equal(parameters[1], torch.ones(2, 2)) and list(optimizer.state) == parameters[:1]

    def test_closure(self):
        weight = nn.Parameter(torch.ones(2, 2))

        def closure():
            loss = weight.square().sum()
            loss.backward()
            return loss

        assert LARS([weight], lr=1.0).step(closure).item() == 4.0
        assert weight.max() < 1

    def test_goes_on_from_a_checkpoint(self, tmp_path):
        weights, gradients = self.problem(steps=8)
        expected = [nn.Parameter(torch.as_tensor(w).clone()) for w in weights]
        whole = LARS([{"params": expected[:2], "rate": 0.5}, {"params": expected[2:], "constant": True}], lr=0.2)
        self.apply(whole, expected, gradients[:4])
        saved = checkpoint.Checkpoint(4, {}, whole.state_dict(), {})
        found = checkpoint.load_checkpoint(checkpoint.save_checkpoint(tmp_path, saved))
        parameters = [nn.Parameter(p.detach().clone()) for p in expected]
        again = LARS([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=0.0)
        load_state(again, found.optimizer)
        for optimizer, own in ((whole, expected), (again, parameters)):
            set_learning_rate(optimizer, 0.1, held=0.4)
            self.apply(optimizer, own, gradients[4:])
        assert [group["lr"] for group in again.param_groups] == [0.05, 0.4]
        for p, q in zip(parameters, expected, strict=True):
            assert torch.equal(p, q)

    @pytest.mark.parametrize(
        ("setting", "text"),
        [({"lr": -1.0}, "lr is out of range: -1.0"), ({"lr": 1.0, "momentum": 1.5}, "momentum is out of range: 1.5"),
         ({"lr": 1.0, "weight_decay": float("nan")}, "weight_decay is out of range: nan"),
         ({"lr": 1.0, "trust": 0.0}, "trust is out of range: 0.0")],
    )  # fmt: skip
    def test_mistakes(self, setting, text):
        with pytest.raises(ValueError, match=text):
            LARS([nn.Parameter(torch.ones(1))], **setting)


class TestGroups:
    def test_rate_multiplies_and_constant_is_held(self):
        parameters = [nn.Parameter(torch.ones(1)) for _ in range(4)]
        groups = [
            {"params": parameters[:1]},
            {"params": parameters[1:2], "rate": 0.1},
            {"params": [], "rate": 9.0},
            {"params": parameters[2:3], "constant": True},
            {"params": parameters[3:], "constant": True, "rate": 2},
        ]
        for name in ("sgd", "adamw", "lars"):
            optimizer = build_optimizer(nn.Identity(), name=name, momentum=0.9, weight_decay=0.0, groups=groups)
            assert len(optimizer.param_groups) == 4  # an empty one is left out
            for held, expected in ((None, [0.5, 0.05, 0.5, 1.0]), (0.8, [0.5, 0.05, 0.8, 1.6])):
                set_learning_rate(optimizer, 0.5, held=held)
                assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)

    @pytest.mark.parametrize("constant", [True, False])
    def test_the_predictor_of_simsiam_keeps_the_peak_after_the_warm_up(self, tmp_path, constant):
        training = prepare("simsiam", f"method.constant_predictor_rate={str(constant).lower()}")
        body, predictor = training.optimizer.param_groups
        assert {id(p) for p in predictor["params"]} == {id(p) for p in training.method.predictor.parameters()}
        rates = []
        engine = Engine(training, tmp_path)
        for batch in engine.read(0, 10):
            engine.update(batch)
            training.step += 1
            rates.append((body["lr"], predictor["lr"]))
        peak = 0.01 * 64 / 256
        expected = [learning_rate(s, total_steps=10, warmup_steps=4, peak=peak) for s in range(10)]
        assert [rate for rate, _ in rates] == expected and max(expected) == peak
        assert [rate for _, rate in rates] == ([*expected[:4], *[peak] * 6] if constant else expected)

    def test_biases_of_barlow_twins_have_a_rate_of_their_own(self, tmp_path):
        training = prepare("barlow_twins", "method.bias_rate=0.25", "optimizer.name=lars")
        weights, biases = training.optimizer.param_groups
        assert min(p.ndim for p in weights["params"]) > 1 and {p.ndim for p in biases["params"]} == {1}
        engine = Engine(training, tmp_path)
        engine.update(next(engine.read(0, 10)))
        assert biases["lr"] == 0.25 * weights["lr"] > 0


def prepare(method, *settings):
    """A pre-training of ten steps of a method on handwritten digits, four of them to warm up."""
    base = setup.use_method(find_recipe("demo"), method)
    words = [*TINY[:-1], "data.subset=640", "epochs=1", "optimizer.warmup_epochs=0.4", "optimizer.learning_rate=0.01"]
    config = setup.complete(override(base, [*words, *settings]))
    source = open_source("digits", split="train", data_root=None)
    return setup.prepare(config, source=source, device=torch.device("cpu"), display=Display(quiet=True))
