"""The learning-rate schedule and what the optimizers hold."""

import numpy as np
import pytest
import torch
from torch import nn

from matrix_ssl.optim import build_optimizer, learning_rate, set_learning_rate


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
