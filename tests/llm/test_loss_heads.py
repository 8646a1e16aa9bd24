"""The fused loss with bias, scale and cap, of every position, with weights, and its entropy and accuracy."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.errors import ConfigError, DataError, MatrixShapeError
from matrix_ssl.llm import (
    Objective,
    matrix_cross_entropy_loss,
    matrix_cross_entropy_terms,
    matrix_cross_entropy_terms_from_logits,
)
from matrix_ssl.llm.loss import forms, loss, passes, positions
from tests.support.llm_samples import IGNORED, sample

OBJECTIVE = Objective(weight=0.7, ridge=0.02, chunk=3)
HEADS = {
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.3},
    "negative scale": {"logit_scale": -2.0},
    "cap": {"softcap": 1.5},
    "all": {"bias": True, "logit_scale": 3.0, "softcap": 2.5},
}


def head_of(kind: str, vocabulary: int = 11) -> dict:
    """The arguments of a kind of head, its bias a tensor."""
    options = dict(HEADS[kind])
    if options.get("bias"):
        options["bias"] = torch.linspace(-1, 1, vocabulary, dtype=torch.float64)
    return options


def logits_of(hidden: Tensor, head: Tensor, bias=None, logit_scale=1.0, softcap=None) -> Tensor:
    """Logits by PyTorch's autograd."""
    logits = logit_scale * (hidden @ head.mT + (0 if bias is None else bias))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("form", ["closed", "lanczos", "top"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_head_with_bias_scale_and_cap_is_the_path_through_its_logits(kind, form, reduction):
    hidden, head, labels = sample()
    objective = Objective(weight=0.7, ridge=0.02, form=form, steps=2, top=4, chunk=3)
    weights = torch.linspace(0.1, 2, labels.numel(), dtype=torch.float64).view(labels.shape)
    common = {"objective": objective, "token_weights": weights, "reduction": reduction}
    options = head_of(kind)
    leaves = [x.requires_grad_() for x in (hidden, head, options.get("bias")) if x is not None]
    fused = matrix_cross_entropy_terms(hidden, head, labels, **options, **common)
    plain = matrix_cross_entropy_terms_from_logits(logits_of(hidden, head, **options), head, labels, **common)
    torch.testing.assert_close(tuple(fused), tuple(plain), rtol=1e-11, atol=1e-13)
    upstream = torch.ones_like(fused.loss) * torch.linspace(1, 2, fused.loss.numel()).view(fused.loss.shape)
    found, expected = (torch.autograd.grad(terms.loss, leaves, upstream) for terms in (fused, plain))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_values_of_positions_are_those_of_pytorch():
    hidden, head, labels = sample()
    terms = matrix_cross_entropy_terms(hidden, head, labels, objective=OBJECTIVE, reduction="none")
    logits = (hidden @ head.mT)[:, :-1]
    ce = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none")
    counts = labels[:, 1:] != IGNORED
    distribution = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(terms.ce, F.pad(ce.view(2, 5), (0, 1)))
    torch.testing.assert_close(terms.entropy, F.pad(distribution.entropy() * counts, (0, 1)))
    torch.testing.assert_close(terms.accuracy, F.pad(((logits.argmax(2) == labels[:, 1:]) & counts).double(), (0, 1)))
    mean = matrix_cross_entropy_terms(hidden, head, labels, objective=OBJECTIVE)
    torch.testing.assert_close(tuple(x.sum() / counts.sum() for x in terms), tuple(mean))


@pytest.mark.parametrize("count", [None, 7])
def test_weights_of_tokens_are_factors_of_their_loss(count):
    hidden, head, labels = sample()
    weights = torch.rand(labels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden.requires_grad_(), head.requires_grad_()
    each = matrix_cross_entropy_loss(hidden, head, labels, objective=OBJECTIVE, reduction="none")
    counted = F.pad(weights[:, 1:] * (labels[:, 1:] != IGNORED), (0, 1))
    expected = (each * counted).sum() / (counted.sum() if count is None else count)
    found = matrix_cross_entropy_loss(
        hidden, head, labels, objective=OBJECTIVE, token_weights=weights, num_items_in_batch=count
    )
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(x, (hidden, head)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_that_are_zero_everywhere_give_zero_where_nothing_is_looked_at(monkeypatch):
    """As on devices other than the CPU, where a look at the sum would wait."""
    for module in (positions, passes, forms, loss):
        monkeypatch.setattr(module, "looks_at_values", lambda *_: False)
    hidden, head, labels = sample()
    terms = matrix_cross_entropy_terms(hidden.requires_grad_(), head, labels, token_weights=torch.zeros(2, 6))
    assert terms.loss == 0 and torch.autograd.grad(terms.loss, hidden)[0].eq(0).all()


def test_a_step_in_which_nothing_counts_gives_zero():
    hidden, head, labels = sample()
    hidden.requires_grad_()
    for number in (0, torch.tensor(0)):
        terms = matrix_cross_entropy_terms(hidden, head, torch.full_like(labels, IGNORED), num_items_in_batch=number)
        assert all(x == 0 for x in terms)
        assert torch.autograd.grad(terms.loss, hidden)[0].eq(0).all()


def test_autocast_multiplies_as_the_models_own_head_does():
    """A head in float32 is rounded to the dtype of autocast; sums, softmax and the gradient of the head are not."""
    hidden, head, labels = (x.float() if x.is_floating_point() else x for x in sample(60, 8, batch=4, length=12))
    rounded = [x.bfloat16().float().requires_grad_() for x in (hidden, head)]
    hidden.requires_grad_(), head.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matrix_cross_entropy_loss(hidden, head, labels)
    expected = matrix_cross_entropy_loss(*rounded, labels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(torch.autograd.grad(found, (hidden, head)), torch.autograd.grad(expected, rounded),
                            strict=True):  # fmt: skip
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_logit_of_minus_infinity_has_no_part_in_the_entropy():
    _, head, labels = sample()
    logits = torch.randn(2, 6, 11, dtype=torch.float64)
    labels[labels == 4] = 3
    logits[..., 4] = -torch.inf
    terms = matrix_cross_entropy_terms_from_logits(logits, head, labels, reduction="none")
    kept = [i for i in range(11) if i != 4]
    expected = torch.distributions.Categorical(logits=logits[:, :-1, kept]).entropy() * (labels[:, 1:] != IGNORED)
    torch.testing.assert_close(terms.entropy[:, :-1], expected)


def test_it_compiles_in_one_graph():
    """The trainers of transformers give the number of labels as a tensor."""
    hidden, head, labels = sample()

    def value(hidden: Tensor) -> Tensor:
        return matrix_cross_entropy_loss(hidden, head, labels, num_items_in_batch=torch.tensor(16))

    torch.testing.assert_close(torch.compile(value, fullgraph=True, backend="eager")(hidden), value(hidden))


@pytest.mark.slow  # traces the gradients, too
@pytest.mark.parametrize(
    "options",
    [{}, {"num_items_in_batch": 16}, {"num_items_in_batch": torch.tensor(16)}, {"token_weights": torch.ones(2, 6)},
     {"reduction": "none", "softcap": 2.0}],
    ids=["mean", "counted", "counted on the device", "weights", "positions"],
)  # fmt: skip
def test_its_gradients_compile_in_one_graph(options):
    hidden, head, labels = sample()
    hidden.requires_grad_(), head.requires_grad_()

    def values(hidden: Tensor, head: Tensor) -> Tensor:
        return matrix_cross_entropy_loss(hidden, head, labels, objective=OBJECTIVE, **options).sum()

    losses = values(hidden, head), torch.compile(values, fullgraph=True, backend="aot_eager")(hidden, head)
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(*(torch.autograd.grad(x, (hidden, head)) for x in losses), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"bias": torch.zeros(5)}, MatrixShapeError, r"bias has the shape \(5,\): expected \(11,\)"),
        ({"logit_scale": 0.0}, ConfigError, "logit_scale=0.0: expected a finite number that is not zero"),
        ({"softcap": -1.0}, ConfigError, "softcap=-1.0: expected a finite number above 0"),
        ({"token_weights": torch.zeros(2, 5)}, MatrixShapeError, r"token_weights has the shape \(2, 5\)"),
        ({"token_weights": torch.zeros(2, 6)}, DataError, "of the labels that count sum to 0, so there is no mean"),
        ({"token_weights": torch.full((2, 6), torch.nan)}, DataError, "token_weights contain NaN or infinite values"),
        ({"reduction": "sum"}, ConfigError, "reduction=sum: expected mean or none"),
        ({"reduction": "none", "num_items_in_batch": 3}, ConfigError, "remove num_items_in_batch"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        matrix_cross_entropy_loss(*sample(), **options)
