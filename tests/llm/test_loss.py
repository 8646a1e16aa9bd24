"""The language-model loss against SciPy's dense logarithm, PyTorch's cross-entropy, finite differences, its bounds."""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from matrix_ssl.errors import ConfigError, DataError, MatrixShapeError, MatrixSSLError, MatrixTypeError, NotFiniteError
from matrix_ssl.llm import Objective, matrix_cross_entropy_loss
from matrix_ssl.llm.head import Head
from matrix_ssl.llm.loss import forms, passes, positions
from matrix_ssl.llm.loss.forms import matrix_term
from matrix_ssl.llm.objective import DEFAULTS
from tests.support import llm_samples as samples
from tests.support.llm_samples import IGNORED, counted, sample
from tests.support.quick import some_of

ROOT = Path(__file__).parents[2]
FORMS = {
    "closed": {"form": "closed"},
    "lanczos": {"form": "lanczos", "steps": 3},
    "top": {"form": "top", "top": 4},
    "dense": {"form": "dense"},
}
EXACT = FORMS | {
    "lanczos, one step": {"form": "lanczos", "steps": 1},
    "lanczos, all steps": {"form": "lanczos", "steps": 5},
    "top, the target alone": {"form": "top", "top": 1},
    "top, more than d": {"form": "top", "top": 7},
    "top, all": {"form": "top", "top": 11},
}
del EXACT["lanczos"]
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def gradients(hidden: Tensor, head: Tensor, labels: Tensor, **options) -> tuple[Tensor, ...]:
    """Loss, and its gradients by hidden states and head."""
    hidden, head = hidden.detach().requires_grad_(), head.detach().requires_grad_()
    loss = samples.loss(hidden, head, labels, **options)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, head))


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


class TestValues:
    @pytest.mark.parametrize("ridge", [1e-3, 0.1, 2.0])
    @pytest.mark.parametrize(
        ("form", "reference"),
        [
            ({"form": "closed"}, samples.closed_values),
            ({"form": "dense"}, samples.dense_values),
            *(({"form": "top", "top": m}, samples.top_values) for m in (1, 2, 4, 5, 9, 11)),
            *(({"form": "lanczos", "steps": k}, samples.lanczos_values) for k in (1, 2, 3, 4, 5)),
        ],
    )
    def test_definitions(self, form, reference, ridge):
        hidden, head, labels = sample(sharpness=1.5)
        states, targets = counted(hidden, labels)
        found = samples.terms(hidden, head, labels, ridge=ridge, **form)
        expected = reference(states @ head.T, head, targets, ridge, *list(form.values())[1:])
        assert found.mce.item() == pytest.approx(np.mean(expected), rel=1e-9)

    @each_form
    def test_cross_entropy_and_weight(self, form):
        hidden, head, labels = sample()
        terms = samples.terms(hidden, head, labels, weight=0.7, **form)
        logits = (hidden @ head.T)[:, :-1].flatten(0, 1)
        torch.testing.assert_close(terms.ce, F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED))
        torch.testing.assert_close(terms.loss, terms.ce + 0.7 * terms.mce)
        assert terms.loss.equal(samples.loss(hidden, head, labels, weight=0.7, **form))
        from_logits = samples.terms_from_logits(hidden @ head.T, head, labels, weight=0.7, **form)
        torch.testing.assert_close(tuple(from_logits), tuple(terms), rtol=1e-12, atol=0)

    def test_defaults(self):
        hidden, head, labels = sample(vocabulary=40, d=20)
        default = matrix_cross_entropy_loss(hidden, head, labels)
        named = {"weight": 1.0, "ridge": 0.01, "form": "closed", "chunk": 256, "ignore_index": -100}
        assert default.equal(samples.loss(hidden, head, labels, **named))
        for form, number in (("lanczos", {"steps": 3}), ("top", {"top": 16})):
            default = samples.loss(hidden, head, labels, form=form)
            assert default.equal(samples.loss(hidden, head, labels, form=form, **number))

    def test_the_pull_on_the_target_beside_that_of_cross_entropy(self):
        """With orthogonal rows the matrix term pulls q / (q + ridge) times as hard, half at the ridge."""
        logits = torch.zeros(1, 2, 6, dtype=torch.float64)
        labels = torch.tensor([[0, 3]])
        for probability in (0.5, DEFAULTS.ridge, 1e-5):
            logits[0, 0, 3] = math.log(probability / (1 - probability)) + math.log(5)
            x = logits.clone().requires_grad_()
            slopes = [
                torch.autograd.grad(samples.loss_from_logits(x, torch.eye(6).double(), labels, weight=weight), x)[0][
                    0, 0, 3
                ]
                for weight in (0.0, 1.0)
            ]
            expected = 1 + probability / (probability + DEFAULTS.ridge)
            assert (slopes[1] / slopes[0]).item() == pytest.approx(expected, rel=1e-9)


class TestBounds:
    @given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 6), st.floats(0, 8), st.floats(1e-4, 3))
    @settings(max_examples=40, deadline=None)
    def test_order(self, seed, vocabulary, d, sharpness, ridge):
        """closed ≤ more and more steps ≤ dense ≤ fewer and fewer tokens; and how far the closed form can be off."""
        hidden, head, labels = sample(vocabulary, d, batch=1, length=4, seed=seed, sharpness=sharpness)
        labels[0, 2:] = labels[0, 2:].clamp_min(0)

        def mce(**form) -> float:
            return samples.terms(hidden, head, labels, ridge=ridge, **form).mce.item()

        states, targets = counted(hidden, labels)
        own = torch.from_numpy(samples.probabilities(states @ head.T)).gather(1, targets[:, None])
        chain = [
            mce(form="closed"),
            *(mce(form="lanczos", steps=steps) for steps in range(1, d + 1)),
            mce(form="dense"),
            *(mce(form="top", top=count) for count in range(vocabulary, 0, -1)),
            -(own + ridge).log().mean().item(),
        ]
        assert all(a <= b + 1e-9 for a, b in itertools.pairwise(chain)), chain
        assert chain[-1] == pytest.approx(chain[-2], abs=1e-9)  # one token alone is the last bound
        assert chain[d + 1] - chain[0] <= largest_gap(ridge) + 1e-9

    def test_largest_gap(self):
        """The bound of the gap is reached, and the docstring's numbers are it."""
        ratio = 1.01 / 0.01
        means = np.linspace(0, 1, 100_001)  # a target that lies in part along Q's only direction, in part outside
        gaps = np.log(means + 0.01) - (means * np.log(1.01) + (1 - means) * np.log(0.01))
        assert largest_gap(0.01) == pytest.approx(gaps.max(), abs=1e-6) == pytest.approx(2.12, abs=0.01)
        assert ratio ** (1 / (ratio - 1)) == pytest.approx(1.047, abs=1e-3)
        assert largest_gap(0.001) == pytest.approx(3.98, abs=0.01)

    def test_orthogonal_rows_make_them_meet(self):
        hidden, _, labels = sample(5, 5, sharpness=2.0)
        head = 3 * torch.linalg.qr(sample(5, 5)[1])[0]
        states, targets = counted(hidden, labels)
        own = (states @ head.T).softmax(1).gather(1, targets[:, None])
        expected = -(own + 0.02).log().mean()
        for form in ({"form": "closed"}, {"form": "lanczos", "steps": 4}, {"form": "dense"}, {"form": "top", "top": 2}):
            found = samples.terms(hidden, head, labels, ridge=0.02, **form).mce
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)

    def test_all_steps_and_all_tokens_are_the_dense_form(self):
        hidden, head, labels = sample(30, 6, sharpness=1.5)
        expected = gradients(hidden, head, labels, form="dense")
        for form in ({"form": "lanczos", "steps": 6}, {"form": "top", "top": 30}):
            for ours, theirs in zip(gradients(hidden, head, labels, **form), expected, strict=True):
                assert relative(ours, theirs) < 1e-12


def largest_gap(ridge: float) -> float:
    """The logarithm of Specht's ratio of 1 + ridge and ridge."""
    h = (1 + ridge) / ridge
    power = h ** (1 / (h - 1))
    return math.log(power / (math.e * math.log(power)))


class TestGradients:
    @pytest.mark.parametrize(
        "form", some_of({name: (form,) for name, form in EXACT.items()}, "closed", "dense", "top", "lanczos, all steps")
    )
    @pytest.mark.parametrize(("ridge", "other"), [(0.01, 1.0), pytest.param(1.0, 0.01, marks=pytest.mark.slow)])
    def test_finite_differences(self, form, ridge, other):
        hidden, head, labels = sample()
        logits = (hidden @ head.T).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda z: samples.loss_from_logits(z, head, labels, weight=1.3, ridge=ridge, chunk=3, **form),
            logits,
        )
        hidden.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda h: samples.loss(h, head, labels, weight=1.3, ridge=other, chunk=3, **form), hidden
        )

    @pytest.mark.parametrize("form", (EXACT | FORMS).values(), ids=EXACT | FORMS)
    def test_fused_is_the_path_through_logits(self, form):
        """So the head learns by its logits alone."""
        hidden, head, labels = sample()
        found = gradients(hidden, head, labels, weight=1.3, chunk=4, **form)
        hidden.requires_grad_(), head.requires_grad_()
        loss = samples.loss_from_logits(hidden @ head.T, head.detach(), labels, weight=1.3, **form)
        torch.testing.assert_close(found[0], loss.detach(), rtol=1e-12, atol=0)
        for ours, theirs in zip(found[1:], torch.autograd.grad(loss, (hidden, head)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("form", [{"form": "dense"}, {"form": "lanczos", "steps": 5}, {"form": "top", "top": 11}])
    def test_dense_reference_and_detached_rows(self, form):
        hidden, head, labels = sample()
        found = gradients(hidden, head, labels, weight=0.8, ridge=0.05, **form)
        hidden.requires_grad_(), head.requires_grad_()
        loss = samples.reference_loss(hidden, head, labels, weight=0.8, ridge=0.05)
        expected = torch.autograd.grad(loss, (hidden, head))
        assert found[0].item() == pytest.approx(loss.item(), rel=1e-12)
        assert max(relative(a, b) for a, b in zip(found[1:], expected, strict=True)) < 1e-12
        moving = samples.reference_loss(hidden, head, labels, weight=0.8, ridge=0.05, rows=head)
        assert relative(found[2], torch.autograd.grad(moving, head)[0]) > 0.05  # rows that move are something else

    def test_lanczos_holds_its_basis_fixed(self):
        """Between one and all steps: finite differences of the compression with the basis of the unperturbed logits."""
        hidden, head, _ = sample(12, 6, batch=1, length=2)
        labels, logits, rows = torch.tensor([[0, 7]]), hidden @ head.T, samples.unit(head)
        for steps in (2, 3, 4):
            basis = samples.lanczos_basis(samples.probabilities(logits[0, :1])[0], rows, 7, steps)

            def bound(z, basis=basis, steps=steps):
                q = samples.probabilities(torch.from_numpy(z)[None])[0]
                compressed = basis.T @ rows.T @ np.diag(q) @ rows @ basis
                return samples.minus_log(compressed + 0.02 * np.eye(steps), basis.T @ rows[7])

            z = logits[0, 0].numpy()
            expected = [(bound(z + e) - bound(z - e)) / 2e-6 for e in 1e-6 * np.eye(12)]
            x = logits.clone().requires_grad_()
            with_term, without = (
                torch.autograd.grad(
                    samples.loss_from_logits(x, head, labels, form="lanczos", ridge=0.02, steps=steps, weight=w),
                    x,
                )[0][0, 0]
                for w in (1.0, 0.0)
            )
            np.testing.assert_allclose(with_term - without, expected, atol=1e-8)
            for other in np.random.default_rng(0).normal(0, 2, (20, 12)):  # with this basis a bound at every q
                assert bound(other) <= samples.dense_values(torch.from_numpy(other)[None], head, [7], 0.02)[0] + 1e-9

    def test_error_of_lanczos(self):
        """To the gradient of the dense term: it falls with every step, to rounding at the last."""
        hidden, head, labels = sample(60, 8, batch=4, length=12, sharpness=1.5)
        plain = gradients(hidden, head, labels, weight=0.0)[1]
        exact = gradients(hidden, head, labels, form="dense")[1] - plain
        errors = [
            relative(gradients(hidden, head, labels, form="lanczos", steps=steps)[1] - plain, exact)
            for steps in range(1, 9)
        ]
        assert all(a > b for a, b in itertools.pairwise(errors))
        assert errors[0] > 0.5 > 0.2 > errors[2] and errors[-1] < 1e-10, errors

    def test_more_probability_never_raises_the_matrix_term(self):
        hidden, head, labels = sample(sharpness=1.5)
        states, targets = counted(hidden, labels)
        q = (states @ head.T).softmax(1)
        rows = Head.of(head, head.dtype)
        for form in FORMS.values():
            objective = Objective(**form)
            assert (matrix_term(q, targets, rows, objective).pull <= 0).all()

    @each_form
    def test_once(self, form):
        hidden, head, labels = sample()
        logits = (hidden @ head.T).requires_grad_()
        hidden.requires_grad_()
        for x, loss in (
            (hidden, samples.loss(hidden, head, labels, **form)),
            (logits, samples.loss_from_logits(logits, head, labels, **form)),
        ):
            with pytest.raises(RuntimeError, match="differentiated once"):
                torch.autograd.grad(loss, x, create_graph=True)
            first, second = (torch.autograd.grad(loss * scale, x, retain_graph=True)[0] for scale in (1, 3))
            torch.testing.assert_close(3 * first, second)

    @each_form
    def test_a_retained_graph_gives_the_same_again(self, form):
        """The first backward gives its buffers away, and its owner may write to them."""
        hidden, head, labels = sample()
        hidden.requires_grad_(), head.requires_grad_()
        loss = samples.loss(hidden, head, labels, **form)
        first = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
        expected = [x.clone() for x in first]
        for x in first:
            x.zero_()
        torch.testing.assert_close(torch.autograd.grad(loss, (hidden, head)), tuple(expected), rtol=0, atol=0)

    def test_only_the_loss_has_a_gradient(self):
        hidden, head, labels = sample()
        terms = samples.terms(hidden.requires_grad_(), head, labels)
        assert [x.requires_grad for x in terms] == [True, *[False] * 4]
        assert not samples.loss(hidden.detach(), head, labels).requires_grad
        logits, movable = (hidden @ head.T).detach(), head.clone().requires_grad_()
        assert not samples.loss_from_logits(logits, movable, labels).requires_grad


class TestInvariances:
    @each_form
    def test_order_of_the_vocabulary(self, form):
        hidden, head, labels = sample()
        order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
        moved = torch.where(labels == IGNORED, IGNORED, order.argsort()[labels.clamp_min(0)])
        found, expected = gradients(hidden, head[order], moved, **form), gradients(hidden, head, labels, **form)
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[2], expected[2][order], rtol=1e-10, atol=1e-12)

    @each_form
    def test_length_of_rows_and_rotation(self, form):
        hidden, head, labels = sample()
        logits = hidden @ head.T
        rotation = torch.linalg.qr(sample(5, 5, seed=3)[1])[0]
        other = head * torch.linspace(0.1, 5, 11, dtype=torch.float64)[:, None] @ rotation
        found, expected = (samples.terms_from_logits(logits, w, labels, **form) for w in (other, head))
        torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-10, atol=0)

    @each_form
    def test_ignoring_is_removing(self, form):
        """The mean over what counts, whatever the ignored positions hold; -1 and other names work, too."""
        hidden, head, labels = sample()
        states, targets = counted(hidden, labels)
        pairs = [
            samples.terms(torch.stack([state, state])[None], head, torch.stack([target, target])[None], **form)
            for state, target in zip(states, targets, strict=True)
        ]
        expected = [torch.stack(part).mean() for part in zip(*pairs, strict=True)]
        hidden[:, -1] = hidden[0, 0] = torch.nan
        found = samples.terms(hidden, head, labels, **form)
        torch.testing.assert_close(tuple(found), tuple(expected))
        renamed = samples.terms(hidden, head, labels.masked_fill(labels < 0, -1), ignore_index=-1, **form)
        torch.testing.assert_close(tuple(renamed), tuple(expected))
        _, by_hidden, _ = gradients(hidden, head, labels, **form)
        assert by_hidden[:, -1].eq(0).all() and by_hidden[0, 0].eq(0).all() and by_hidden.isfinite().all()


class TestBatches:
    @each_form
    def test_accumulation_is_the_large_batch(self, form):
        hidden, head, labels = sample(batch=6)
        labels[3] = IGNORED  # a micro-batch in which nothing counts
        expected = gradients(hidden, head, labels, **form)
        number = int((labels[:, 1:] != IGNORED).sum())
        for count in (number, torch.tensor(number)):
            parts = [
                gradients(h, head, y, num_items_in_batch=count, **form)
                for h, y in zip(hidden.split([1, 2, 1, 2]), labels.split([1, 2, 1, 2]), strict=True)
            ]
            loss, by_hidden, by_head = zip(*parts, strict=True)
            assert loss[2] == 0 and by_head[2].eq(0).all()
            found = sum(loss), torch.cat(by_hidden), sum(by_head)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)

    @each_form
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_chunks(self, form, dtype):
        hidden, head, labels = sample(batch=3)
        hidden, head = hidden.to(dtype), head.to(dtype)
        expected = gradients(hidden, head, labels, chunk=10**6, **form)
        for chunk in (1, 2, 5):
            found = gradients(hidden, head, labels, chunk=chunk, **form)
            assert max(relative(a, b) for a, b in zip(found, expected, strict=True)) < 1e-6

    @each_form
    def test_labels_that_are_not_looked_at(self, form, monkeypatch):
        """What other devices than the CPU do: every position is computed, and those that do not count are zero."""
        hidden, head, labels = sample()
        expected = gradients(hidden, head, labels, **form)
        logits = (hidden @ head.T).requires_grad_()
        (by_logits,) = torch.autograd.grad(samples.loss_from_logits(logits, head, labels, **form), logits)
        for module in (positions, passes, forms):
            monkeypatch.setattr(module, "looks_at_values", lambda *_: False)
        hidden[0, 0] = torch.nan  # predicts an ignored label
        found = gradients(hidden, head, labels, chunk=3, **form)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
        loss = samples.loss_from_logits(logits, head, labels, chunk=3, **form)
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], by_logits, rtol=1e-10, atol=1e-14)
        nothing = gradients(hidden, head, torch.full_like(labels, IGNORED), **form)
        assert all(x.eq(0).all() for x in nothing)
        if form["form"] == "closed":
            assert samples.loss(hidden, head, labels.clamp_min(0)).isnan()


class TestPrecision:
    @each_form
    def test_float32(self, form):
        hidden, head, labels = sample(60, 8, batch=4, length=12)
        expected = gradients(hidden, head, labels, **form)
        found = gradients(hidden.float(), head.float(), labels, **form)
        assert all(x.dtype == torch.float32 for x in found)
        assert max(relative(a, b) for a, b in zip(found, expected, strict=True)) < 2e-5

    @pytest.mark.parametrize(("dtype", "units"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
    @each_form
    def test_half_precision(self, form, dtype, units):
        """The value of the rounded inputs in float32, and gradients rounded once, with and without autocast."""
        hidden, head, labels = sample(60, 8, batch=4, length=12)
        hidden, head = hidden.to(dtype), head.to(dtype)
        expected = gradients(hidden.float(), head.float(), labels, chunk=9, **form)
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                found = gradients(hidden, head, labels, chunk=9, **form)
            assert [x.dtype for x in found] == [torch.float32, dtype, dtype]
            assert found[0].equal(expected[0])
            for ours, exact in zip(found[1:], expected[1:], strict=True):  # of a sum over chunks, rounded at its end
                assert ((ours.double() - exact).abs() <= units * exact.abs() + 1e-6 * exact.abs().max()).all()
            logits = (hidden.float() @ head.float().T).to(dtype).requires_grad_()
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                loss = samples.loss_from_logits(logits, head, labels, **form)
                (by_logits,) = torch.autograd.grad(loss, logits)
            exact = logits.detach().float().requires_grad_()
            loss = samples.loss_from_logits(exact, head.float(), labels, **form)
            assert by_logits.dtype == dtype
            assert relative(by_logits, torch.autograd.grad(loss, exact)[0]) < units

    def test_a_small_factor_does_not_underflow(self):
        """float16 has no numbers below 6e-8; the factor of the mean must not meet the gradient before the scaler's."""
        hidden, head, labels = sample()
        half = hidden.half().requires_grad_()
        loss = samples.loss(half, head.half(), labels, num_items_in_batch=10**9) * 2**30
        exact = half.detach().float().requires_grad_()
        other = samples.loss(exact, head.half().float(), labels, num_items_in_batch=10**9) * 2**30
        assert relative(*(torch.autograd.grad(x, y)[0] for x, y in ((loss, half), (other, exact)))) < 2**-10

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @each_form
    def test_a_loss_scale_comes_before_the_rounding(self, form, dtype):
        """With a head of small entries the gradient of a position is below the normal numbers of float16."""
        hidden, head, labels = sample(60, 8, batch=4, length=12)
        hidden, head = (1e4 * hidden).to(dtype), (1e-5 * head).to(dtype)

        def scaled(inputs: Tensor, weight: Tensor) -> Tensor:
            inputs.requires_grad_()
            loss = samples.loss(inputs, weight, labels, **form) * 65536
            return torch.autograd.grad(loss, inputs)[0]

        exact, found = scaled(hidden.double(), head.double()), scaled(hidden, head)
        assert found.dtype == dtype and relative(found, exact) < torch.finfo(dtype).eps / 2

    @each_form
    def test_certain_and_impossible_targets(self, form):
        """Logits far apart: the target has probability 1, or one that is no number of float32."""
        head = sample(11, 5)[1].float()
        logits = torch.zeros(1, 3, 11)
        logits[0, 0, 3] = logits[0, 1, 5] = 500.0
        logits.requires_grad_()
        terms = samples.terms_from_logits(logits, head, torch.tensor([[0, 3, 2]]), **form)
        assert terms.ce.item() == pytest.approx(250)
        assert 0 <= terms.mce <= -math.log(0.01) / 2 + 1e-3
        (gradient,) = torch.autograd.grad(terms.loss, logits)
        assert gradient.isfinite().all() and gradient[0, 1, 2] == pytest.approx(-0.5)

    @each_form
    def test_rows_that_repeat_or_have_no_direction(self, form):
        hidden, head, labels = sample()
        head[4] = head[3]
        labels[0, 2:4], labels[1, 1:3] = 3, 7
        head[7] = 0
        assert all(x.isfinite().all() for x in gradients(hidden, head, labels, **form))
        assert samples.terms(hidden[:1, :2], head, torch.tensor([[0, 7]]), **form).mce == 0


class Shapes(TorchDispatchMode):
    """Records how many elements the largest new tensors have."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        own = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in own:
            self.sizes.append(result.numel())
        return result


class TestMemoryAndWork:
    @pytest.mark.parametrize("form", [{"form": "closed"}, {"form": "top", "top": 4}, {"form": "lanczos", "steps": 2}])
    def test_nothing_is_as_large_as_all_logits(self, form):
        hidden, head, labels = sample(300, 4, batch=2, length=33)
        hidden.requires_grad_(), head.requires_grad_()
        saved: list[Tensor] = []
        with Shapes() as shapes, torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            samples.loss(hidden, head, labels, chunk=4, **form).backward()
        width = form.get("steps", 1)
        assert max(shapes.sizes) == 4 * 300 * width
        assert sorted(x.numel() for x in saved) == [hidden.numel(), head.numel()]

    @pytest.mark.parametrize("form", [{"form": "closed"}, {"form": "top", "top": 4}])
    def test_from_logits_makes_one_tensor_as_large(self, form):
        hidden, head, labels = sample(300, 4, batch=2, length=33)
        logits, saved = (hidden @ head.T).bfloat16().requires_grad_(), []
        with Shapes() as shapes, torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            samples.loss_from_logits(logits, head.bfloat16(), labels, chunk=4, **form).backward()
        large = [size for size in shapes.sizes if size > 4 * 300]
        assert large == [logits.numel()]  # the gradient itself
        assert [x.data_ptr() for x in saved if x.numel() > head.numel()] == [logits.data_ptr()]

    @pytest.mark.parametrize(
        ("form", "products"),
        [({"form": "closed"}, 1), *(({"form": "lanczos", "steps": k}, 2 * k - 1) for k in (1, 2, 3))],
    )
    @pytest.mark.parametrize("frozen", [False, True])
    def test_products_with_the_head(self, form, products, frozen):
        """Logits, two gradients or one if the head is frozen, those of the form; without grad mode no gradient."""
        hidden, head, _ = sample(300, 8, batch=1, length=9)
        labels = torch.arange(9).unsqueeze(0)
        hidden.requires_grad_(), head.requires_grad_(not frozen)
        one = 2 * 8 * 300 * 8
        small = 0 if form["form"] == "closed" else 2 * 8 * 300 * form["steps"] ** 2 * 2 + 10_000
        for context, gradient in ((torch.enable_grad(), 1 if frozen else 2), (torch.no_grad(), 0)):
            with context, FlopCounterMode(display=False) as counter:
                loss = samples.loss(hidden, head, labels, **form)
                if gradient:
                    loss.backward()
            expected = (1 + gradient + products) * one
            assert expected <= counter.get_total_flops() <= expected + small
        assert head.grad is None or not frozen

    def test_a_token_that_is_a_target_twice_costs_one_row_of_products(self):
        hidden, head, _ = sample(300, 8, batch=1, length=9)
        labels = torch.tensor([[0, 7, 5, 7, 5, 7, 5, 7, 5]])
        with FlopCounterMode(display=False) as counter:
            samples.loss(hidden, head, labels)
        assert counter.get_total_flops() == 2 * 8 * 300 * (8 + 2)


def call(**changes):
    """A call with one thing changed."""
    hidden, head, labels = sample()
    tensors = {"hidden": hidden, "head_weight": head, "labels": labels}
    tensors |= {key: changes.pop(key) for key in list(changes) if key in tensors}
    return samples.loss(*tensors.values(), **changes)


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"ridge": 0.0}, ConfigError, "ridge=0.0: expected a finite number above 0."),
            ({"ridge": math.nan}, ConfigError, "ridge=nan"),
            ({"weight": -1.0}, ConfigError, "weight=-1.0: expected a finite number of at least 0."),
            ({"weight": math.inf}, ConfigError, "weight=inf"),
            ({"form": "lancos"}, ConfigError, "lanczos, top, dense. Did you mean 'lanczos'?"),
            ({"form": "x"}, ConfigError, "form=x: expected one of closed, lanczos, top, dense."),
            ({"form": "lanczos", "steps": 6}, ConfigError, "steps=6: expected 1 to 5 Lanczos steps"),
            ({"form": "lanczos", "steps": 0}, ConfigError, "steps=0"),
            ({"form": "top", "top": 12}, ConfigError, "top=12: expected 1 to 11 tokens"),
            ({"form": "top", "top": 0}, ConfigError, "top=0"),
            ({"chunk": 0}, ConfigError, "chunk=0"),
            ({"num_items_in_batch": 0}, ConfigError, "num_items_in_batch=0"),
            ({"num_items_in_batch": torch.tensor(-3)}, ConfigError, "num_items_in_batch=-3"),
            ({"hidden": torch.zeros(6, 5)}, MatrixShapeError, "(6, 5): expected a non-empty tensor (batch, "),
            ({"hidden": torch.zeros(0, 6, 5)}, MatrixShapeError, "expected a non-empty tensor (batch, positions, d)"),
            ({"hidden": torch.zeros(2, 6, 5).int()}, MatrixTypeError, "hidden has the type torch.int32"),
            ({"hidden": torch.zeros(2, 6, 4)}, MatrixShapeError, "hidden must equal the width, 5"),
            ({"head_weight": torch.zeros(5)}, MatrixShapeError, "head_weight has the shape (5,): expected"),
            ({"head_weight": torch.ones(4, 5, dtype=torch.cfloat)}, MatrixTypeError, "head_weight has the type"),
            ({"labels": torch.zeros(2, 5).long()}, MatrixShapeError, "The labels have the shape (2, 5)"),
            ({"labels": torch.zeros(2, 6)}, MatrixTypeError, "The labels have the type torch.float32"),
            ({"labels": torch.full((2, 6), 11)}, DataError, "label is 11, but the head has a vocabulary of 11 "),
            ({"labels": torch.full((2, 6), -1)}, DataError, "A label is -1: "),
            ({"labels": torch.full((2, 6), IGNORED)}, DataError, "All labels are ignored"),
            ({"hidden": torch.full((2, 6, 5), math.nan)}, NotFiniteError, "at batch 0, position 1 is nan"),
            ({"hidden": torch.full((2, 6, 5), math.inf)}, NotFiniteError, "at batch 0, position 1 is nan"),
        ],
    )  # fmt: skip
    def test_sentences(self, changes, error, message):
        with pytest.raises(error) as caught:
            call(**changes)
        assert message in str(caught.value)
        assert isinstance(caught.value, MatrixSSLError) and caught.value.exit_code > 0

    def test_logits(self):
        _, head, labels = sample()
        with pytest.raises(MatrixShapeError, match=r"the last dimension of logits must equal the vocabulary, 11"):
            samples.loss_from_logits(torch.zeros(2, 6, 12), head, labels)
        with pytest.raises(MatrixShapeError, match=r"expected a non-empty tensor \(batch, positions, vocabulary\)"):
            samples.loss_from_logits(torch.zeros(12, 11), head, labels)
        logits = torch.zeros(2, 6, 11)
        logits[1, 2, 4] = math.nan
        for form in FORMS.values():
            with pytest.raises(NotFiniteError, match="at batch 1, position 2 is nan"):
                samples.loss_from_logits(logits, head, labels, **form)

    def test_unused_numbers_do_not_matter(self):
        assert call(form="closed", steps=99, top=99).isfinite()


class TestPage:
    def test_benchmark_and_its_tables(self, tmp_path, monkeypatch):
        """The script runs, and the page holds the tables of the last full run."""
        pytest.importorskip("rich", reason="benchmarks print with rich")
        from benchmarks.speed import llm_loss

        monkeypatch.setattr(sys, "argv", ["llm_loss", "--quick", "--out", str(tmp_path / "found.json")])
        llm_loss.main()
        quick = json.loads((tmp_path / "found.json").read_text())
        assert all(row["ratio"]["cross-entropy"]["median"] == 1 for row in quick["rows"])
        assert all(row["mib"]["closed"] >= 0 for row in quick["memory"])
        assert quick["errors"]["forms"]["lanczos, 12 steps"]["gradient"] < 0.05
        result = json.loads((ROOT / "benchmarks" / "results" / "llm_loss.json").read_text())
        page = (ROOT / "docs" / "llm-loss.md").read_text("utf-8")
        assert [table in page for table in llm_loss.tables(result)] == [True] * 3
