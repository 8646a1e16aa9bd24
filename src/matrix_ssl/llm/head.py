"""The head of a language model: its rows for logits and for the matrix term, and where a model keeps it."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from matrix_ssl.errors import ConfigError
from matrix_ssl.llm.loss.products import times_columns, times_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST = 1e-12  # rows below this length have no direction, as in losses


class Head(NamedTuple):
    """The rows of a head, in its own dtype, and what turns their products with hidden states into logits.

        logits = cap(scale · (hidden @ rowsᵀ + bias))        cap(x) = softcap · tanh(x / softcap)

    Everything else is computed in the dtype of ``inverse_lengths``, float32 or better. Unit rows are never stored:
    products with the rows are divided by their lengths instead.
    """

    weight: Tensor  # (vocabulary, d)
    inverse_lengths: Tensor  # (vocabulary,), zero for a row without direction
    bias: Tensor | None = None  # (vocabulary,)
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(
        cls, weight: Tensor, dtype: torch.dtype, *,
        bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None,
    ) -> "Head":  # fmt: skip
        """A head whose products have results of the given dtype; its rows are not copied."""
        rows = weight.detach()
        lengths = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
        inverse = torch.where(lengths > _SHORTEST, 1 / lengths.clamp_min(_SHORTEST), 0.0)
        return cls(rows, inverse, None if bias is None else bias.detach().to(dtype), scale, softcap)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all results."""
        return self.inverse_lengths.dtype

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits (n, vocabulary) of hidden states (n, d)."""
        logits = times_rows(hidden, self.weight, self.dtype)
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def unit_rows(self, tokens: Tensor) -> Tensor:
        """The unit rows y of the tokens (...): (..., d); zero for a row without direction."""
        return self.weight[tokens].to(self.dtype) * self.inverse_lengths[tokens].unsqueeze(-1)

    def has_direction(self, tokens: Tensor) -> Tensor:
        """The length of y of the tokens (...), 1 or 0."""
        return (self.inverse_lengths[tokens] > 0).to(self.dtype)

    def cosines(self, tokens: Tensor) -> Tensor:
        """<y_i, y> for every token i and the y of tokens (n,): (n, vocabulary), from the rows as they are stored."""
        products = times_rows(self.weight[tokens], self.weight, self.dtype).mul_(self.inverse_lengths)
        return products.mul_(self.inverse_lengths[tokens].unsqueeze(1))

    def products(self, directions: Tensor) -> Tensor:
        """<y_i, v> for every token i and direction v (n, d): (n, vocabulary)."""
        return times_rows(directions, self.weight, self.dtype).mul_(self.inverse_lengths)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Σ_i c_i y_i for coefficients (n, vocabulary): (n, d)."""
        return times_columns(coefficients * self.inverse_lengths, self.weight)


def find_head(model: Any) -> Any:
    """The module of a causal language model that turns hidden states into logits, also inside a peft model."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if getattr(head, "weight", None) is None:
        raise ConfigError(
            f"{type(model).__name__} has no head for tokens: load it with AutoModelForCausalLM, or let its "
            f"get_output_embeddings return the layer that computes the logits."
        )
    if (other := _not_of_low_rank(head)) is not None:
        raise ConfigError(
            f"The head has an adapter, {type(other).__module__}.{type(other).__name__}, that is not of low rank "
            f"(LoRA), so the rows for the matrix term are not known: remove the head from target_modules, or train it "
            f"whole with modules_to_save."
        )
    return head


def effective_rows(head: Any) -> tuple[Tensor, Tensor | None]:
    """Rows (vocabulary, d) and bias of a head, plus the products and biases of its low-rank adapters; with gradient.

    A half-precision head below an adapter becomes float32, because a small difference would be lost in the sum.
    """
    base = getattr(head, "base_layer", head)
    rows, bias = base.weight, getattr(base, "bias", None)
    for adapter in _adapters(head):
        rows = rows + head.get_delta_weight(adapter)
        if (added := head.lora_B[adapter].bias) is not None:
            added = head.scaling[adapter] * added
            bias = added if bias is None else bias + added
    return rows, bias


def _adapters(head: Any) -> list[str]:
    """The names of the low-rank adapters that change a head's output."""
    if not hasattr(head, "base_layer") or head.merged or head.disable_adapters:
        return []
    return [adapter for adapter in head.active_adapters if adapter in head.lora_A]


def _not_of_low_rank(head: Any) -> Any:
    """An adapter of a head that does more than add a product to its weight, such as IA3 or DoRA; None if none does."""
    if hasattr(head, "base_layer") and not hasattr(head, "lora_A"):
        return head
    variants = (head.lora_variant.get(adapter) for adapter in _adapters(head))
    return next((variant for variant in variants if variant is not None), None)


def mergeable(head: Any) -> bool:
    """Whether the logits of a head are products with ``effective_rows``, as far as its adapters are concerned."""
    if not hasattr(head, "base_layer"):
        return True
    if hasattr(head.base_layer.weight, "ds_id"):
        return False
    return not any(getattr(dropout, "p", 0) for dropout in head.lora_dropout.values())


def head_shape(model: Any) -> tuple[int, int]:
    """(vocabulary, d) of the head, even if it is sharded across processes; the first version of FSDP flattens it."""
    head = find_head(model)
    weight = getattr(head, "base_layer", head).weight
    shape = tuple(getattr(weight, "ds_shape", weight.shape))  # under ZeRO-3 the weight itself is empty
    if len(shape) != 2 or 0 in shape:
        raise ConfigError(
            f"The weight of the head has the shape {shape} instead of (vocabulary, d): with FSDP, use version 2."
        )
    return shape


def head_rows(model: Any) -> Tensor:
    """The rows (vocabulary, d), without gradient. If the head is sharded across processes, all of them must call."""
    head_shape(model)
    head = find_head(model)
    weight = head.weight
    if hasattr(weight, "ds_id"):  # DeepSpeed's ZeRO-3: whole only inside the block
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]), torch.no_grad():
            return weight.detach().clone()
    with torch.no_grad():
        rows = effective_rows(head)[0].detach()
    return rows.full_tensor() if hasattr(rows, "full_tensor") else rows  # a DTensor under FSDP, version 2


def tokens_without_row(model: Any, tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many tokens of a tokenizer have no row in the head, which is fine if none of them occurs in the data."""
    vocabulary, _ = head_shape(model)
    return sum(token >= vocabulary for token in tokenizer.get_vocab().values())
