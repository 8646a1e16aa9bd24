"""The head of a transformers model: its rows as the loss needs them, whole and without gradient."""

from typing import Any

import torch
from torch import Tensor

from matrix_ssl.errors import ConfigError


def find_head(model: Any) -> Any:
    """The module that turns hidden states into logits.

    Args:
        model: a causal language model of transformers, or one that peft has wrapped.

    Raises:
        ConfigError: there is none, or it is not one matrix of which the rows are the tokens.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if head is None or getattr(head, "weight", None) is None:
        raise ConfigError(
            f"{type(model).__name__} has no head for tokens: load it by AutoModelForCausalLM, or let its "
            f"get_output_embeddings return the layer that makes the logits."
        )
    if hasattr(head, "base_layer"):
        raise ConfigError(
            "an adapter is on the head, so that its weight is not what makes the logits: leave the head out of "
            "target_modules, or train it whole by modules_to_save."
        )
    return head


def head_shape(model: Any) -> tuple[int, int]:
    """(vocabulary, d) of the head, also of one that is spread over processes.

    Raises:
        ConfigError: as ``find_head``; or the head is flattened, as by the first version of FSDP.
    """
    weight = find_head(model).weight
    shape = tuple(getattr(weight, "ds_shape", weight.shape))  # under ZeRO-3 the weight itself is empty
    if len(shape) != 2 or 0 in shape:
        raise ConfigError(
            f"the weight of the head has the shape {shape} instead of (vocabulary, d): of FSDP, use version 2."
        )
    return shape


def head_rows(model: Any) -> Tensor:
    """The rows (vocabulary, d), without gradient. Where the head is spread over processes, all of them have to call.

    Raises:
        ConfigError: as ``head_shape``.
    """
    head_shape(model)
    weight = find_head(model).weight
    if hasattr(weight, "ds_id"):  # DeepSpeed's ZeRO-3: whole inside of the block only
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]), torch.no_grad():
            return weight.detach().clone()
    rows = weight.detach()
    return rows.full_tensor() if hasattr(rows, "full_tensor") else rows  # a DTensor under FSDP, version 2


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raises ConfigError where the tokenizer knows a token that the head has no row for."""
    vocabulary, _ = head_shape(model)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= vocabulary:
        raise ConfigError(
            f"the tokenizer's largest token is {largest} ({token!r}), but the head has {vocabulary} rows: pass the "
            f"tokenizer that belongs to the model, or call model.resize_token_embeddings({largest + 1}) first."
        )
