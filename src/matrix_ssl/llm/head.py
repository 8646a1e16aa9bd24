"""The head of a language model: its rows for logits and for the matrix term, and where a model keeps it."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from matrix_ssl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST = 1e-12  # rows below this length have no direction, as in losses


class Head(NamedTuple):
    """Rows in float32 or better. Unit rows are never stored: a product with the rows is divided by their lengths."""

    weight: Tensor  # (vocabulary, d)
    inverse_lengths: Tensor  # (vocabulary,), zero for a row without direction

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> "Head":
        """The head in a dtype: half precision is copied, once for all chunks."""
        full = weight.detach().to(dtype)
        lengths = torch.linalg.vector_norm(full, dim=1)
        return cls(full, torch.where(lengths > _SHORTEST, 1 / lengths.clamp_min(_SHORTEST), 0.0))

    def unit_rows(self, tokens: Tensor) -> Tensor:
        """y of the tokens (...): (..., d); zero for a row without direction."""
        return self.weight[tokens] * self.inverse_lengths[tokens].unsqueeze(-1)

    def has_direction(self, tokens: Tensor) -> Tensor:
        """The length of y of the tokens (...), 1 or 0."""
        return (self.inverse_lengths[tokens] > 0).to(self.weight.dtype)

    def products(self, directions: Tensor) -> Tensor:
        """<y_i, v> of every token i and direction v (n, d): (n, vocabulary)."""
        return (directions @ self.weight.mT).mul_(self.inverse_lengths)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Σ_i c_i y_i for coefficients (n, vocabulary): (n, d)."""
        return (coefficients * self.inverse_lengths) @ self.weight


def find_head(model: Any) -> Any:
    """The module of a causal language model, also inside of peft's, that turns hidden states into logits."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if getattr(head, "weight", None) is None:
        raise ConfigError(
            f"{type(model).__name__} has no head for tokens: load it with AutoModelForCausalLM, or let its "
            f"get_output_embeddings return the layer that computes the logits."
        )
    if hasattr(head, "base_layer"):
        raise ConfigError(
            "The head has an adapter, so its weight alone does not give the logits: remove the head from "
            "target_modules, or train it whole with modules_to_save."
        )
    return head


def head_shape(model: Any) -> tuple[int, int]:
    """(vocabulary, d) of the head, also when it is sharded over processes; the first version of FSDP flattens it."""
    weight = find_head(model).weight
    shape = tuple(getattr(weight, "ds_shape", weight.shape))  # under ZeRO-3 the weight itself is empty
    if len(shape) != 2 or 0 in shape:
        raise ConfigError(
            f"The weight of the head has the shape {shape} instead of (vocabulary, d): with FSDP, use version 2."
        )
    return shape


def head_rows(model: Any) -> Tensor:
    """The rows (vocabulary, d), without gradient. If the head is sharded over processes, all of them have to call."""
    head_shape(model)
    weight = find_head(model).weight
    if hasattr(weight, "ds_id"):  # DeepSpeed's ZeRO-3: whole inside of the block only
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]), torch.no_grad():
            return weight.detach().clone()
    rows = weight.detach()
    return rows.full_tensor() if hasattr(rows, "full_tensor") else rows  # a DTensor under FSDP, version 2


def check_vocabulary(model: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises ConfigError if the tokenizer has a token without a row of the head."""
    vocabulary, _ = head_shape(model)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= vocabulary:
        raise ConfigError(
            f"The tokenizer's largest token is {largest} ({token!r}), but the head has {vocabulary} rows: pass the "
            f"tokenizer that belongs to the model, or call model.resize_token_embeddings({largest + 1}) first."
        )
