"""Greedy answers of a causal language model to prompts, in batches of similar length."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from matrix_ssl.errors import ConfigError, import_extra
from matrix_ssl.llm.data.examples import check_end, special_tokens
from matrix_ssl.llm.data.templates import STOPS, TemplateName, adds_special_tokens
from matrix_ssl.llm.models import check_tokens, context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_KEPT = ("eos_token_id", "bos_token_id", "pad_token_id")  # of the folder's generation settings
Progress = Callable[[int, int, float], None]  # answers so far, their total, new tokens per second


class Written(NamedTuple):
    """Answers in the order of the prompts, and how fast they were written."""

    texts: list[str]
    tokens: int  # new ones, including end tokens
    seconds: float


def ignored_settings(model: "PreTrainedModel") -> dict[str, Any]:
    """Generation settings in a model's folder (sampling, beams, penalties) that greedy decoding ignores, as JSON."""
    own: Any = getattr(model, "generation_config", None)
    values = own.to_diff_dict() if own is not None else {}
    ignored = {
        key: x for key, x in values.items() if key not in (*_KEPT, "transformers_version") and not key.startswith("_")
    }
    whole: dict[str, Any] = json.loads(json.dumps(ignored, default=_plain))
    return whole


def _plain(value: Any) -> Any:
    """A substitute for a setting that JSON has no type for, such as a watermarking configuration."""
    return value.to_dict() if hasattr(value, "to_dict") else repr(value)


def has_static_cache(model: "PreTrainedModel") -> bool:
    """Whether keys and values go into memory of fixed length, which no new token moves; transformers' own flag."""
    return bool(getattr(model, "_can_compile_fullgraph", False)) and not model.config.is_encoder_decoder


@contextmanager
def greedy(model: "PreTrainedModel", end: int) -> Iterator[None]:
    """Within the block, a model generates greedily, whatever its folder says, up to one of its end tokens or ``end``.

    The cache is static if the model supports it. The forward is not compiled, which would take a minute per shape.
    """
    own: Any = getattr(model, "generation_config", None)
    kept = {key: getattr(own, key, None) for key in _KEPT}
    ends = kept["eos_token_id"]
    kept["eos_token_id"] = sorted({end, *(ends if isinstance(ends, list) else [] if ends is None else [ends])})
    model.eval()
    model.generation_config = import_extra("transformers", extra="llm").GenerationConfig(
        do_sample=False, num_beams=1, cache_implementation="static" if has_static_cache(model) else None,
        disable_compile=True, **kept,
    )  # fmt: skip
    try:
        yield
    finally:
        model.generation_config = own


def write(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], *,
    template: TemplateName, batch_size: int, max_new_tokens: int,
    on_progress: Progress = lambda done, total, rate: None,
) -> Written:  # fmt: skip
    """The answers to prompts as ``templates.prompt`` writes them, up to an end token or a stop string of the template.

    Prompts are sorted by length, the longest first, so that batches need little padding and anything that does not fit
    into memory fails at once. The order changes answers only through rounding.
    """
    special, end = adds_special_tokens(template), check_end(tokenizer)
    ending = len(special_tokens(tokenizer)[1]) if special else 0
    encoded = [ids[: len(ids) - ending] for ids in tokenizer(list(prompts), add_special_tokens=special)["input_ids"]]
    check_prompts(model, encoded, max_new_tokens)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    texts, tokens, started = [""] * len(encoded), 0, time.monotonic()
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    generate: Any = model.generate
    with greedy(model, end), torch.inference_mode():
        for first in range(0, len(order), batch_size):
            part = order[first : first + batch_size]
            longest = len(encoded[part[0]])
            ids = torch.tensor([[filler] * (longest - len(encoded[i])) + encoded[i] for i in part])
            mask = torch.tensor([[0] * (longest - len(encoded[i])) + [1] * len(encoded[i]) for i in part])
            new = generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=max_new_tokens,
                pad_token_id=filler, **_stopping(tokenizer, template),
            )[:, longest:].tolist()  # fmt: skip
            for i, answer in zip(part, new, strict=True):
                answer = _until_end(answer, model)
                tokens += len(answer)
                texts[i] = _until_stop(str(tokenizer.decode(answer, skip_special_tokens=True)), template)
            on_progress(min(first + batch_size, len(order)), len(order), tokens / (time.monotonic() - started))
    return Written(texts, tokens, time.monotonic() - started)


def check_prompts(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Checks that a model can answer prompts, given as tokens.

    Raises:
        ConfigError: a token has no embedding, or the longest prompt and its answer exceed the model's positions.
    """
    check_tokens(model, max(max(ids, default=0) for ids in prompts), model.config.name_or_path or "the model")
    longest = max(map(len, prompts))
    positions = context_length(model)
    if positions is not None and longest + max_new_tokens > positions:
        raise ConfigError(
            f"The longest prompt ({longest} tokens) and max_new_tokens={max_new_tokens} exceed the model's {positions} "
            f"positions: lower --max-new-tokens."
        )


def _stopping(tokenizer: "PreTrainedTokenizerBase", template: TemplateName) -> dict[str, Any]:
    return {"stop_strings": list(STOPS[template]), "tokenizer": tokenizer} if STOPS[template] else {}


def _until_end(answer: list[int], model: "PreTrainedModel") -> list[int]:
    """The tokens up to and including the first end token of ``greedy``; padding follows it in a batch."""
    ends: Any = model.generation_config.eos_token_id
    place = next((i for i, token in enumerate(answer) if token in ends), len(answer))
    return answer[: place + 1]


def _until_stop(text: str, template: TemplateName) -> str:
    return text[: min([len(text), *(text.find(stop) for stop in STOPS[template] if stop in text)])]
