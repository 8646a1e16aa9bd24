"""Cross-entropy plus matrix cross-entropy of the next token, fused with the head of a language model.

With y_i the rows of the head, of length one and WITHOUT gradient, q_t the predicted distribution at position t and y_t
the row of the token that follows,

    Q_t = Σ_i q_ti y_i y_iᵀ        P_t = y_t y_tᵀ
    loss = mean_t [-log q_t,target]  +  weight · mean_t [-y_tᵀ log(Q_t + ridge·I) y_t]

which is MCE(P_t, Q_t) of the paper up to tr Q_t = 1, a constant. A token whose row points where the target's does
counts as partly right. Four forms of the matrix term bracket each other, see ``forms``:

    closed  ≤  lanczos  ≤  dense  ≤  top  ≤  -log(q_target + ridge)

The rows carry no gradient because making all of them alike would minimise the term. It supplements the cross-entropy
and never replaces it: its pull on the target's logit is that of the cross-entropy times q / (q + ridge) where rows are
orthogonal, and vanishes for tokens that the model finds far less likely than the ridge. There the forms agree, and the
sum is close to twice the cross-entropy.

This is an INTERPRETATION. The paper reports a language model trained with cross-entropy plus matrix cross-entropy; no
code of it was published, and which embeddings, weight and ridge it used could not be verified.

Reference: Zhang, Tan, Yang, Huang and Yuan, "Matrix Information Theory for Self-Supervised Learning", ICML 2024.
"""

from typing import NamedTuple

from torch import Tensor

from matrix_ssl.errors import ConfigError, DataError, MatrixShapeError, MatrixTypeError
from matrix_ssl.llm.loss.fused import sums_from_hidden, sums_from_logits
from matrix_ssl.llm.loss.positions import Positions, find_positions
from matrix_ssl.llm.objective import DEFAULTS, Objective, check_objective


class MatrixCrossEntropyTerms(NamedTuple):
    """A loss and its terms, in nats. Only the loss has a gradient."""

    loss: Tensor  # (), ce + weight · mce
    ce: Tensor  # (), cross-entropy
    mce: Tensor  # (), matrix cross-entropy, not multiplied by the weight


def matrix_cross_entropy_loss(
    hidden: Tensor, head_weight: Tensor, labels: Tensor, *,
    objective: Objective = DEFAULTS, num_items_in_batch: int | Tensor | None = None, ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    """The loss of ``matrix_cross_entropy_terms``, with the same arguments: a scalar in nats."""
    return matrix_cross_entropy_terms(
        hidden, head_weight, labels,
        objective=objective, num_items_in_batch=num_items_in_batch, ignore_index=ignore_index,
    ).loss  # fmt: skip


def matrix_cross_entropy_terms(
    hidden: Tensor, head_weight: Tensor, labels: Tensor, *,
    objective: Objective = DEFAULTS, num_items_in_batch: int | Tensor | None = None, ignore_index: int = -100,
) -> MatrixCrossEntropyTerms:  # fmt: skip
    """Cross-entropy plus ``weight`` times matrix cross-entropy, from hidden states; the logits are never whole.

    Value and gradients are computed together, ``chunk`` positions at a time, so memory is that of the gradients and a
    few (chunk, vocabulary) matrices. A head that needs no gradient costs none. Beside the three products of a head and
    its gradients, ``"closed"`` takes one more, ``"lanczos"`` 2·steps - 1, ``"top"`` small ones.

    It computes in float32, float64 stays, with autocast off. Labels and cross-entropy are checked on the CPU. Elsewhere
    a check would make the device wait: a label out of range is an error of the device there, and NaN in gives NaN out
    or an error of PyTorch's eigen-decomposition. ``"closed"`` never waits; that decomposition in the other forms does.

    The defaults: ridge 0.01 is the probability from which on the matrix term pulls at least half as hard as the
    cross-entropy; tokens below are rare once a model is worth fine-tuning. A smaller ridge makes the term more like a
    second cross-entropy, multiplies rounding by 1/ridge, and widens the gap between ``"closed"`` and ``"dense"``, which
    is 2.1 nats at most at 0.01 and 4.0 at 0.001 (the logarithm of Specht's ratio). Weight 1 is the plain sum: the
    pull on the target is one to two times that of the cross-entropy, where rows are orthogonal.

    Args:
        hidden: (batch, positions, d), the last hidden states, as they enter the head.
        head_weight: (vocabulary, d), the weight of the head, which has no bias. Its gradient is that of the logits.
        labels: (batch, positions), integers, UNSHIFTED: position t predicts label t + 1.
        objective: weight, ridge, form and chunk. Gradients are exact, except that of ``"lanczos"`` between one step and
            as many as exhaust the space.
        num_items_in_batch: divisor of the sums: labels counted in all micro-batches and processes of one step. None
            for the mean over the positions counted here.
        ignore_index: the label that does not count.

    Returns:
        Scalars, in nats; the loss is differentiable once. If all labels are ignored: 0, with gradients of 0; without
        ``num_items_in_batch`` an error on the CPU.

    Raises:
        ConfigError: a number is out of its range, or the form is unknown.
        DataError: a label is out of range, or all are ignored.
        MatrixShapeError: shapes do not fit.
        MatrixTypeError: hidden states or head are no real floating-point numbers, or labels no integers.
        NotFiniteError: the cross-entropy is NaN or infinite at some position.
    """
    positions = _check(hidden, "hidden", 1, head_weight, labels, objective, ignore_index)
    sums = sums_from_hidden(hidden.flatten(0, 1), head_weight, positions, objective)
    return _divide(sums, positions, num_items_in_batch)


def matrix_cross_entropy_terms_from_logits(
    logits: Tensor, head_weight: Tensor, labels: Tensor, *,
    objective: Objective = DEFAULTS, num_items_in_batch: int | Tensor | None = None, ignore_index: int = -100,
) -> MatrixCrossEntropyTerms:  # fmt: skip
    """``matrix_cross_entropy_terms`` from logits (batch, positions, vocabulary), for heads that are not one product.

    Logits may have a bias, a scale or a cap; ``head_weight`` gives the rows. The gradient is by the logits alone. It is
    computed in the backward, so only the logits are kept until then, and the matrix term is computed twice. Other
    arguments, returns and raises as there.
    """
    positions = _check(logits, "logits", 0, head_weight, labels, objective, ignore_index)
    sums = sums_from_logits(logits.flatten(0, 1), head_weight, positions, objective)
    return _divide(sums, positions, num_items_in_batch)


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
    vocabulary, d = head_weight.shape
    check_objective(objective, vocabulary=vocabulary, d=d)
    return find_positions(labels, shape=outputs.shape[:2], vocabulary=vocabulary, ignore_index=ignore_index)


def _divide(sums: tuple[Tensor, ...], positions: Positions, num_items: int | Tensor | None) -> MatrixCrossEntropyTerms:
    """The sums over ``num_items``, or over the number of positions that count."""
    count = positions.total()
    if num_items is None:
        if isinstance(count, int) and count == 0:
            raise DataError(
                "All labels are ignored (the first of every sequence never counts), so there is nothing to learn: mask "
                "less of the sequences or make them longer. With num_items_in_batch such a batch gives 0."
            )
        num_items = count.clamp_min(1) if isinstance(count, Tensor) else count
    elif (not isinstance(num_items, Tensor) or num_items.device.type == "cpu") and not num_items > 0:
        raise ConfigError(f"num_items_in_batch={num_items}: expected a number above 0, of labels counted in a step.")
    return MatrixCrossEntropyTerms(*(x / num_items for x in sums))
