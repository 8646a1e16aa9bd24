"""The moving-average teacher against a loop written by hand."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from matrix_ssl.networks.teacher import cosine_momentum, make_teacher, update_teacher, weights_cast_once
from tests.support.counted import counted


@pytest.fixture
def student():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.BatchNorm1d(5, affine=False),
    ).double()


def batch(seed=1):
    return torch.randn(8, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def state(module):
    return copy.deepcopy(module.state_dict())


def test_starts_as_a_copy_without_gradient(student):
    teacher = make_teacher(student)
    assert all(
        torch.equal(a, b) for a, b in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True)
    )
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert not {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}
    assert [m.momentum for m in student.modules() if hasattr(m, "momentum")] == [0.1, 0.1]


@pytest.mark.parametrize("momentum", [-0.1, 1.9, 996, float("nan")])
def test_a_momentum_that_is_none_changes_nothing(student, momentum):
    teacher = make_teacher(student)
    before = state(teacher)
    with pytest.raises(ValueError, match=r"momentum must be a number from 0 to 1, got "):
        update_teacher(teacher, student, momentum)
    assert all(torch.equal(value, before[name]) for name, value in state(teacher).items())


def test_follows_the_student_as_a_loop_by_hand(student):
    teacher = make_teacher(student)
    expected = state(teacher)
    for step, momentum in enumerate([0.9, 0.5, 0.99, 0.0, 1.0]):
        student(batch(step))  # moves the buffers
        with torch.no_grad():
            for p in student.parameters():
                p += torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(step))
        update_teacher(teacher, student, momentum)
        for name, value in student.state_dict().items():
            if name.endswith("num_batches_tracked"):
                expected[name] = value.clone()
            else:
                expected[name] = momentum * expected[name] + (1 - momentum) * value
        found = teacher.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
    assert found["1.num_batches_tracked"] == 5


def test_its_forward_uses_batch_statistics_and_moves_none(student):
    teacher = make_teacher(student).train()
    student.train()
    before = state(teacher)
    torch.testing.assert_close(teacher(batch()), student(batch()), rtol=1e-12, atol=1e-12)
    after = teacher.state_dict()
    running = [name for name in before if "running" in name]
    assert len(running) == 4
    assert all(torch.equal(after[name], before[name]) for name in running)
    assert not torch.equal(student.state_dict()["1.running_mean"], before["1.running_mean"])


def test_takes_no_gradient(student):
    teacher = make_teacher(student)
    (student(batch()) * teacher(batch())).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_its_weights_are_cast_once_for_all_views(student):
    """Two weights and two biases; the outputs are those of a teacher that casts them for every view."""
    teacher = make_teacher(student).float()

    def teach(context):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = []
            for seed in (1, 2):
                with context(teacher, batch(seed)):
                    outputs.append(teacher(batch(seed).float()))
        return outputs

    plain, casts = counted("cpu", teach, lambda *_: contextlib.nullcontext())
    shared, fewer = counted("cpu", teach, weights_cast_once)
    assert casts.counts["_to_copy"] - fewer.counts["_to_copy"] == 4
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(shared, plain, strict=True))
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("start", [0.0, 0.99, 0.996])
def test_momentum_rises_on_half_a_cosine(start):
    assert cosine_momentum(0.0, start) == pytest.approx(start, abs=1e-15)
    assert cosine_momentum(0.5, start) == pytest.approx((1 + start) / 2)
    assert cosine_momentum(1.0, start) == 1.0
    path = [cosine_momentum(i / 20, start) for i in range(21)]
    assert path == sorted(path)


def test_masks_of_infinities_are_copied(student):
    for network in (student, teacher := make_teacher(student)):
        network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    student.mask = torch.tensor([-torch.inf, 0.0])
    for momentum in (0.0, 0.9, 1.0):
        update_teacher(teacher, student, momentum)
        assert torch.equal(teacher.mask, student.mask)
