"""The closed form as Triton kernels: an online softmax with one more weighted sum, and its gradient w.r.t. the logits.

Each program handles one position and walks over its row of logits and of cosines in blocks of the vocabulary:

    m = max z_i      s = Σ exp(z_i - m)      c = Σ exp(z_i - m) <y_i, y>²      e = Σ exp(z_i - m) z_i
    ce = m + log s - z_y      mce = -log(c/s + ridge)      entropy = m + log s - e/s

The sums are rescaled whenever the maximum rises (Milakov and Gimelshein, "Online normalizer calculation for softmax",
2018). A second walk overwrites the logits with ∂loss/∂z_i = q_i (a - b <y_i, y>²) - [i = y], b = weight / (c/s + ridge)
and a = 1 + b c/s. A chunk is thus read twice and written once, whereas PyTorch's operations take a dozen passes.
Everything is in float32. With TRITON_INTERPRET=1 the kernels run on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # of the vocabulary


@triton.jit
def _position(  # type: ignore[no-untyped-def]
    logits, cosines, targets, directed, values, vocabulary, stride, weight, ridge,
    with_gradient: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_row, cos_row = logits + row * stride, cosines + row * stride
    target = tl.load(targets + row)
    columns = tl.arange(0, block)
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    weighted = tl.zeros((), tl.float32)
    first = tl.zeros((), tl.float32)
    best = tl.full((), 0, tl.int32)
    for start in range(0, vocabulary, block):
        inside = start + columns < vocabulary
        z = tl.load(z_row + start + columns, mask=inside, other=float("-inf"))
        cos = tl.load(cos_row + start + columns, mask=inside, other=0.0)
        own = tl.max(z, 0)
        best = tl.where(own > largest, start + tl.argmax(z, 0), best)
        higher = tl.maximum(largest, own)
        # a row that begins with -inf has no maximum yet
        correction = tl.where(largest == float("-inf"), 0.0, tl.exp(largest - higher))
        p = tl.where(z == float("-inf"), 0.0, tl.exp(z - higher))
        total = total * correction + tl.sum(p, 0)
        weighted = weighted * correction + tl.sum(p * cos * cos, 0)
        first = first * correction + tl.sum(tl.where(p > 0, p * z, 0.0), 0)
        largest = higher
    normaliser = largest + tl.log(total)
    mean = weighted / total
    shifted = mean + ridge
    has_direction = tl.load(directed + row)
    tl.store(values + 4 * row, normaliser - tl.load(z_row + target))
    tl.store(values + 4 * row + 1, -tl.log(shifted) * has_direction)
    tl.store(values + 4 * row + 2, normaliser - first / total)
    tl.store(values + 4 * row + 3, (best == target).to(tl.float32))
    if with_gradient:
        slope = weight / shifted
        for start in range(0, vocabulary, block):
            inside = start + columns < vocabulary
            z = tl.load(z_row + start + columns, mask=inside, other=float("-inf"))
            cos = tl.load(cos_row + start + columns, mask=inside, other=0.0)
            q = tl.exp(z - normaliser)
            gradient = q * (1.0 + slope * (mean - cos * cos))
            gradient = tl.where(start + columns == target, gradient - 1.0, gradient)
            tl.store(z_row + start + columns, gradient, mask=inside)


def closed_form(
    logits: Tensor, cosines: Tensor, targets: Tensor, directed: Tensor, *,
    weight: float, ridge: float, with_gradient: bool,
) -> Tensor:  # fmt: skip
    """Cross-entropy, matrix term, entropy and whether the most probable token is the target: (n, 4), in float32.

    Args:
        logits: (n, vocabulary), float32 and contiguous; may be overwritten with the gradient of ce + weight · mce.
        cosines: (n, vocabulary), <y_i, y> of every token's row with the target's.
        targets: (n,), tokens.
        directed: (n,), 1 where the target's row has a direction, 0 where it has none.
        weight: of the matrix term.
        ridge: added to the weighted sum.
        with_gradient: whether to overwrite the logits with the gradient, to which the matrix term of a position without
            a direction adds nothing, as its cosines are zero.
    """
    values = torch.empty(len(logits), 4, device=logits.device)
    block = min(_BLOCK, triton.next_power_of_2(logits.shape[1]))
    if len(logits):
        _position[(len(logits),)](
            logits, cosines, targets, directed, values, logits.shape[1], logits.stride(0), weight, ridge,
            with_gradient=with_gradient, block=block,
        )  # fmt: skip
    return values
