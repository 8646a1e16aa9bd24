"""Several examples in one row instead of padding, each computed as if it were alone.

The positions of every example begin at 0. transformers' masks (eager and sdpa, full, sliding and chunked) are made from
these positions if no other mask is given: a token attends only to earlier ones of its own example. The first token of
an example is no label, since the token before it belongs to another one. A batch keeps its examples, so its loss, a sum
over tokens divided by their number, and its gradient are those without packing, up to rounding.

Rows are as long as the longest example of the batch, and filled by best-fit decreasing; Ding et al., "Fewer Truncations
Improve Language Modeling", ICML 2024.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.llm.finetune.fused_head import owner_of_head

_IGNORED = -100
_MASKED = ("full_attention", "sliding_attention", "chunked_attention")  # kinds of layers that follow the masks
_LENGTHS = (12, 7, 5)  # of the examples of the check: two rows without padding
_ROUNDING, _HALF = 1e-4, 5e-2  # relative, of logits in float32 and in half precision or from quantized weights


def best_fit(lengths: Sequence[int]) -> list[list[int]]:
    """The examples of each row, at most as long as the longest example: each in the fullest row that has room for it.

    Args:
        lengths: numbers of tokens of the examples.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [row for row in range(len(rows)) if room[row] >= lengths[example]]
        if fitting:
            row = min(fitting, key=room.__getitem__)
        else:
            row = len(rows)
            rows.append([])
            room.append(max(lengths))
        rows[row].append(example)
        room[row] -= lengths[example]
    return rows


def pack(inputs: dict[str, Any], labels: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The inputs of a model and the labels in fewer rows, or unchanged if there would be as many.

    Args:
        inputs: tensors of the shape (examples, tokens, …), among them an ``attention_mask`` that is 0 at padding.
        labels: (examples, tokens), not shifted.

    Raises:
        DataError: there is no such mask, or an input is not a tensor of this shape.
    """
    given = inputs.get("attention_mask")
    if given is None or given.ndim != 2:
        raise DataError("Packing needs an attention_mask of the shape (examples, tokens): let the collator return one.")
    for key, x in inputs.items():
        if not isinstance(x, Tensor) or x.shape[:2] != given.shape:
            raise DataError(f"Packing takes one value of each input for every token, but {key} has others: remove it.")
    mask = given.cpu().bool()
    lengths: list[int] = mask.sum(1).tolist()
    rows = best_fit(lengths)
    if len(rows) == len(lengths):
        return inputs, labels
    examples = mask.flatten().nonzero().flatten().split(lengths)  # the places of their tokens
    shape = len(rows), max(lengths)
    places, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    learned = torch.zeros(shape, dtype=torch.bool)
    for row, members in enumerate(rows):
        first = 0
        for example in members:
            end = first + lengths[example]
            places[row, first:end] = examples[example]
            positions[row, first:] = torch.arange(shape[1] - first)  # padding after the last example continues it
            learned[row, first + 1 : end] = True
            first = end
    places, positions, learned = (x.to(given.device) for x in (places, positions, learned))
    packed = {key: x.flatten(0, 1)[places] for key, x in inputs.items() if key != "attention_mask"}
    # with a cache, the masks would not be made from the positions
    return packed | {"position_ids": positions, "use_cache": False}, labels.flatten()[places].where(learned, _IGNORED)


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Compares the logits of three examples that are packed with those that they have alone.

    Recurrent layers and convolutions carry on from one example to the next, and some models take no positions.

    Raises:
        ConfigError: they differ by more than rounding, or the comparison is not possible.
    """
    owner = owner_of_head(model)
    config, name = owner.config.get_text_config(), type(owner).__name__
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ConfigError(
            "packing cannot be verified for weights that DeepSpeed's ZeRO-3 has divided: use FSDP or an earlier stage, "
            "or set packing=false."
        )
    others = [kind for kind in getattr(config, "layer_types", None) or () if kind not in _MASKED]
    if others:
        raise _refused(name, f"its layers of the type {others[0]} do not keep the examples of a row apart")
    if "position_ids" not in inspect.signature(type(owner).forward).parameters:
        raise _refused(name, "it takes no positions, which keep the examples of a row apart")
    shape = len(_LENGTHS), max(_LENGTHS)
    place = torch.arange(shape[0] * shape[1], device=owner.device).view(shape)
    mask = (torch.arange(shape[1]) < torch.tensor(_LENGTHS).unsqueeze(1)).long().to(owner.device)
    ids = (place + 5) % owner.get_input_embeddings().num_embeddings
    packed, _ = pack({"input_ids": ids, "attention_mask": mask, "place": place}, place)
    places = packed.pop("place").flatten()
    was_training = model.training
    model.eval()
    # without padding, with which some models have logits that are no numbers
    rows = [model(input_ids=row[:length].unsqueeze(0)).logits for row, length in zip(ids, _LENGTHS, strict=True)]
    if any(row.shape[1] != length for row, length in zip(rows, _LENGTHS, strict=True)):
        raise _refused(name, "its adapter adds positions of its own")
    together = model(**packed).logits.flatten(0, 1)
    model.train(was_training)
    expected = torch.cat(rows, 1).squeeze(0)
    found = together[places.argsort()].double()  # the rows have no padding, so this is the order of the examples
    exact = expected.dtype in (torch.float32, torch.float64) and not getattr(owner, "is_quantized", False)
    error = (found - expected.double()).norm() / expected.double().norm()
    if not error <= (_ROUNDING if exact else _HALF):  # NaN proves nothing
        raise _refused(name, f"the logits of examples in one row are not those of each alone (by {float(error):.1g})")


def _refused(name: str, reason: str) -> ConfigError:
    return ConfigError(f"packing is not possible with {name}, as {reason}: set packing=false.")
