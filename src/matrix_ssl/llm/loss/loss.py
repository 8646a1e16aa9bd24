"""Cross-entropy plus matrix cross-entropy of the next token, fused with the head of a language model.

Let y_i be the rows of the head, of unit length and WITHOUT gradient, q_t the predicted distribution at position t, and
y_t the row of the token that follows. Then

    Q_t = Σ_i q_ti y_i y_iᵀ        P_t = y_t y_tᵀ
    loss = mean_t [-log q_t,target]  +  weight · mean_t [-y_tᵀ log(Q_t + ridge·I) y_t]

The second mean is over the paper's MCE(P_t, Q_t), up to the constant tr Q_t = 1. A token whose row points in the
target's direction counts as partly right. Four forms of the matrix term bound each other, see ``forms``:

    closed  ≤  lanczos  ≤  dense  ≤  top  ≤  -log(q_target + ridge)

The rows carry no gradient because making all of them alike would minimise the term. The term supplements the
cross-entropy and never replaces it: where rows are orthogonal, its pull on the target's logit is that of the
cross-entropy times q / (q + ridge), and it vanishes for tokens that the model finds far less likely than the ridge.
Where rows are orthogonal, the forms agree, and the sum is close to twice the cross-entropy.

This is an INTERPRETATION. The paper reports a language model trained with cross-entropy plus matrix cross-entropy, but
no code for it was published, and the embeddings, weight and ridge it used could not be verified.

Reference: Zhang, Tan, Yang, Huang and Yuan, "Matrix Information Theory for Self-Supervised Learning", ICML 2024.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.errors import ConfigError, DataError, MatrixShapeError, MatrixTypeError
from matrix_ssl.llm.loss.fused import Request, values_from_hidden, values_from_logits
from matrix_ssl.llm.loss.positions import Positions, find_positions
from matrix_ssl.llm.objective import DEFAULTS, Objective, check_objective
from matrix_ssl.matrix.numerics.validation import is_mapped, looks_at_values

Reduction = Literal["mean", "none"]


class MatrixCrossEntropyTerms(NamedTuple):
    """The loss and its terms, in nats, and statistics of the predictions. Only the loss has a gradient."""

    loss: Tensor  # (), ce + weight · mce
    ce: Tensor  # (), cross-entropy
    mce: Tensor  # (), matrix cross-entropy, not multiplied by the weight
    entropy: Tensor  # (), of the predicted distributions
    accuracy: Tensor  # (), share of positions whose most probable token is the target


def matrix_cross_entropy_loss(
    hidden: Tensor, head_weight: Tensor, labels: Tensor, *,
    objective: Objective = DEFAULTS, bias: Tensor | None = None, logit_scale: float = 1.0,
    softcap: float | None = None, token_weights: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None, reduction: Reduction = "mean", ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    """The loss of ``matrix_cross_entropy_terms``, with the same arguments: in nats, a scalar or (batch, positions)."""
    return matrix_cross_entropy_terms(
        hidden, head_weight, labels, objective=objective, bias=bias, logit_scale=logit_scale, softcap=softcap,
        token_weights=token_weights, num_items_in_batch=num_items_in_batch, reduction=reduction,
        ignore_index=ignore_index,
    ).loss  # fmt: skip


def matrix_cross_entropy_terms(
    hidden: Tensor, head_weight: Tensor, labels: Tensor, *,
    objective: Objective = DEFAULTS, bias: Tensor | None = None, logit_scale: float = 1.0,
    softcap: float | None = None, token_weights: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None, reduction: Reduction = "mean", ignore_index: int = -100,
) -> MatrixCrossEntropyTerms:  # fmt: skip
    """Cross-entropy plus ``weight`` times matrix cross-entropy, from hidden states, without materialising full logits.

        logits = cap(logit_scale · (hidden @ head_weightᵀ + bias))        cap(x) = softcap · tanh(x / softcap)

    Value and gradients are computed together, ``chunk`` positions at a time, so memory is that of the gradients and a
    few (chunk, vocabulary) matrices. No gradient of the head is computed if none is needed. In addition to the three
    products for a head and its gradients, ``"closed"`` takes one more, ``"lanczos"`` 2·steps - 1, ``"top"`` small ones.

    Products are computed in the dtype of the head, or that of autocast for a head in float32, and summed in float32, as
    is the gradient of the head. Everything else is computed in float32; float64 stays float64. Labels and cross-entropy
    are checked only on the CPU, because a check would force other devices to synchronise. There, an out-of-range label
    is a device error, and NaN in the input gives NaN in the output or an error from PyTorch's eigendecomposition.
    ``"closed"`` never synchronises; the eigendecomposition of the other forms does.

    The default ridge, 0.01, is the probability above which the matrix term pulls at least half as hard as the
    cross-entropy; tokens below it are rare once a model is worth fine-tuning. A smaller ridge makes the term more like
    a second cross-entropy, multiplies rounding errors by 1/ridge, and widens the gap between ``"closed"`` and
    ``"dense"``, which is at most 2.1 nats at 0.01 and 4.0 at 0.001 (the logarithm of Specht's ratio). The default
    weight, 1, is the plain sum: where rows are orthogonal, the pull on the target is one to two times that of the
    cross-entropy.

    Args:
        hidden: (batch, positions, d), the last hidden states, as they enter the head.
        head_weight: (vocabulary, d), the weight of the head. Its gradient comes from the logits alone.
        labels: (batch, positions), integers, UNSHIFTED: position t predicts label t + 1.
        objective: weight, ridge, form and chunk. Gradients are exact, except for ``"lanczos"`` with more than one step
            and fewer than exhaust the space.
        bias: (vocabulary,), the bias of the head (Phi, GPT-J).
        logit_scale: factor applied to the logits (Cohere, Granite), finite and not zero.
        softcap: bound on the logits (Gemma 2), above 0.
        token_weights: (batch, positions), one per label and so also unshifted: factors of ce and mce, without gradient.
        num_items_in_batch: divisor of the sums: labels counted in all micro-batches and processes of one step. None
            divides by the number of positions counted here, or by the sum of their weights.
        reduction: ``"none"`` returns (batch, positions) instead of scalars: at t the contribution of label t + 1, and 0
            where it does not count. Its gradient costs a second pass.
        ignore_index: the label value that does not count.

    Returns:
        Scalars, in nats except the accuracy, which is 0 to 1; the loss is differentiable once. If all labels are
        ignored, they are 0, with gradients of 0; without ``num_items_in_batch`` this is an error on the CPU. Entropy
        and accuracy are unweighted.

    Raises:
        ConfigError: a number is out of its range, or a name is unknown.
        DataError: a label is out of range, all are ignored, or weights are not finite or sum to 0.
        MatrixShapeError: shapes do not match.
        MatrixTypeError: hidden states or head are not real floating-point numbers, or labels are not integers.
        NotFiniteError: the cross-entropy is NaN or infinite at some position.
    """
    positions = _check(hidden, "hidden", 1, head_weight, labels, objective, ignore_index)
    if bias is not None and bias.shape != head_weight.shape[:1]:
        raise MatrixShapeError(f"bias has the shape {tuple(bias.shape)}: expected ({len(head_weight)},).")
    if not (logit_scale and abs(logit_scale) < float("inf")):
        raise ConfigError(f"logit_scale={logit_scale}: expected a finite number that is not zero.")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ConfigError(f"softcap={softcap}: expected a finite number above 0, or None.")
    factors = _factors(token_weights, labels, positions)
    request = Request(positions, objective, factors, float(logit_scale), softcap)
    each = _each(reduction, num_items_in_batch)
    values = values_from_hidden(hidden.flatten(0, 1), head_weight, bias, request, each=each)
    return _spread(*values, positions, labels) if each else _divide(*values, positions, factors, num_items_in_batch)


def matrix_cross_entropy_terms_from_logits(
    logits: Tensor, head_weight: Tensor, labels: Tensor, *,
    objective: Objective = DEFAULTS, token_weights: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None, reduction: Reduction = "mean", ignore_index: int = -100,
) -> MatrixCrossEntropyTerms:  # fmt: skip
    """``matrix_cross_entropy_terms`` from logits (batch, positions, vocabulary), however they were computed.

    ``head_weight`` supplies the rows. The loss is differentiable with respect to the logits alone. The gradient is
    computed in the backward, so only the logits are kept until then, and the matrix term is computed twice. Other
    arguments, return values and errors are those of ``matrix_cross_entropy_terms``.
    """
    positions = _check(logits, "logits", 0, head_weight, labels, objective, ignore_index)
    factors = _factors(token_weights, labels, positions)
    each = _each(reduction, num_items_in_batch)
    values = values_from_logits(logits.flatten(0, 1), head_weight, Request(positions, objective, factors), each=each)
    return _spread(*values, positions, labels) if each else _divide(*values, positions, factors, num_items_in_batch)


def _check(
    outputs: Tensor, name: str, side: int, head_weight: Tensor, labels: Tensor, objective: Objective, ignore_index: int
) -> Positions:
    """The counted positions; ``side`` is the dimension of the head that the outputs share."""
    for called, x, dimensions in ((name, outputs, 3), ("head_weight", head_weight, 2)):
        if x.ndim != dimensions or 0 in x.shape:
            expected = "(batch, positions, d)" if side else "(batch, positions, vocabulary)"
            raise MatrixShapeError(
                f"{called} has the shape {tuple(x.shape)}: expected a non-empty tensor "
                f"{expected if x is outputs else '(vocabulary, d)'}."
            )
        if not x.is_floating_point():
            raise MatrixTypeError(f"{called} has the type {x.dtype}: pass real floating-point numbers.")
    if outputs.shape[-1] != head_weight.shape[side]:
        raise MatrixShapeError(
            f"{name} {tuple(outputs.shape)} and head_weight {tuple(head_weight.shape)} do not fit: the last dimension "
            f"of {name} must equal the {'width' if side else 'vocabulary'}, {head_weight.shape[side]}."
        )
    if is_mapped(outputs) or is_mapped(head_weight) or is_mapped(labels):
        raise NotImplementedError(
            "The loss of language models does not work under torch.func.vmap: pass all sequences as one batch, with "
            "reduction='none' for the loss of each position."
        )
    vocabulary, d = head_weight.shape
    check_objective(objective, vocabulary=vocabulary, d=d)
    return find_positions(labels, shape=outputs.shape[:2], vocabulary=vocabulary, ignore_index=ignore_index)


def _each(reduction: str, num_items: int | Tensor | None) -> bool:
    """Whether per-position values are requested."""
    if reduction not in ("mean", "none"):
        raise ConfigError(f"reduction={reduction}: expected mean or none.")
    if reduction == "none" and num_items is not None:
        raise ConfigError("reduction=none divides by nothing: remove num_items_in_batch.")
    return reduction == "none"


def _factors(token_weights: Tensor | None, labels: Tensor, positions: Positions) -> Tensor | None:
    """The weights of the positions, (n,), zero where they do not count."""
    if token_weights is None:
        return None
    if token_weights.shape != labels.shape:
        raise MatrixShapeError(
            f"token_weights has the shape {tuple(token_weights.shape)}, but the labels {tuple(labels.shape)}: pass one "
            f"weight for each label."
        )
    following = F.pad(token_weights.detach()[:, 1:], (0, 1)).flatten()[positions.rows]
    factors = positions.mask(following.to(torch.float64 if following.dtype == torch.float64 else torch.float32))
    if looks_at_values(factors, None) and not factors.isfinite().all():
        raise DataError("token_weights contain NaN or infinite values: pass finite numbers.")
    return factors


def _spread(loss: Tensor, measures: Tensor, positions: Positions, labels: Tensor) -> MatrixCrossEntropyTerms:
    """The values of the positions (n,) at their places in (batch, positions), and zero elsewhere."""
    whole = (x.new_zeros(labels.numel()).index_copy(0, positions.rows, x) for x in (loss, *measures))
    return MatrixCrossEntropyTerms(*(x.view(labels.shape) for x in whole))


def _divide(
    loss: Tensor, measures: Tensor, positions: Positions, factors: Tensor | None, num_items: int | Tensor | None
) -> MatrixCrossEntropyTerms:
    """The sums divided by ``num_items``, by the number of positions that count, or by the sum of their weights."""
    count = positions.total()
    nothing = isinstance(count, int) and count == 0
    if num_items is None:
        if nothing:
            raise DataError(
                "All labels are ignored (the first of every sequence never counts), so there is nothing to learn: mask "
                "less of the sequences or make them longer. With num_items_in_batch such a batch gives 0."
            )
        number: int | Tensor = count.clamp_min(1) if isinstance(count, Tensor) else count
        weighted = number if factors is None else _total(factors)
        return MatrixCrossEntropyTerms(loss / weighted, *(measures[:2] / weighted), *(measures[2:] / number))
    if isinstance(num_items, Tensor):
        looks = looks_at_values(num_items, None)
        if looks and not num_items > 0 and not (nothing and num_items == 0):
            raise _wrong_number(num_items)
        num_items = torch.where(num_items > 0, num_items, 1)  # a step in which nothing counts
    elif not num_items > 0:
        if not (nothing and num_items == 0):
            raise _wrong_number(num_items)
        num_items = 1
    return MatrixCrossEntropyTerms(loss / num_items, *(measures / num_items))


def _total(factors: Tensor) -> Tensor:
    """The sum of the weights (n,), or 1 if it is 0: on devices whose values are not checked, such a batch gives 0."""
    total = factors.sum()
    if looks_at_values(total, None) and total == 0:
        raise DataError(
            "The token_weights of the labels that count sum to 0, so there is no mean: pass num_items_in_batch, or "
            "reduction='none'."
        )
    return torch.where(total == 0, 1, total)


def _wrong_number(number: int | Tensor) -> ConfigError:
    return ConfigError(f"num_items_in_batch={number}: expected a number above 0, of labels counted in a step.")
