"""Measures a language model's token representations over a text, layer by layer, alongside those of a reference.

The models read the text in turn, each in one pass; only the sums of ``TokenStatistics`` are kept. Memory is therefore
that of the models, a batch of hidden states, and (d, d) numbers in float64 per layer. The device holds one model at a
time.
"""

import importlib.metadata
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from matrix_ssl.errors import ConfigError, MatrixError
from matrix_ssl.llm import models
from matrix_ssl.llm.data.examples import special_tokens
from matrix_ssl.llm.diagnose import windows as reading
from matrix_ssl.llm.diagnose.measures import Measures, TokenStatistics
from matrix_ssl.report.diagnosis import PAGE, RESULT, layer_name, write_page
from matrix_ssl.runs import devices
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import check_output, lock, unfinished

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNTRAINED = "untrained"
_WINDOW = 512  # tokens, unless the model has a lower limit

Progress = Callable[[str, int, float], None]  # name of the model, windows it has read, share of all reading


@dataclass(frozen=True)
class DiagnoseSettings:
    """Everything that determines what a diagnosis computes."""

    model: str  # a fine-tuning run, a folder in safetensors with its tokenizer, or a name on the hub
    text: Path  # UTF-8
    reference: str | None = None  # a different model or its config:, whose tokenizer is not used, or "untrained"
    layers: str = "all"  # "all", "last", or numbers separated by commas; 0 is the output of the embeddings
    max_tokens: int | None = None  # stop after this many tokens of the text
    window: int | None = None  # tokens, special ones included; None: 512, or the model's limit if it is lower
    batch_size: int = 8  # windows per forward pass; no measure depends on it
    seed: int = 0  # of a reference with random weights


def diagnose(
    settings: DiagnoseSettings,
    out: Path,
    *,
    device: torch.device,
    on_progress: Progress = lambda name, windows, share: None,
) -> dict[str, Any]:
    """Measures the model and the reference, writes ``diagnose.json`` and ``diagnose.html``, and returns the former.

    Earlier results in the folder are replaced only once everything has been computed.

    Raises:
        CheckpointError: a model or the tokenizer cannot be opened.
        ConfigError: a setting cannot work with the model, or the reference has a different depth or width.
        DataError: the text cannot be read, or has fewer than two tokens.
        MatrixError: hidden states are not finite, or all equal; the error names the layer.
        RunFolderError: the folder cannot be written.
    """
    with lock(out):
        for name in (RESULT, PAGE):
            check_output(out / name, settings.text)
            for left in unfinished(out, name):
                left.unlink(missing_ok=True)
        result = _measure_both(settings, device, on_progress)
        write_json(out / RESULT, result)
        write_page(out, result)
    return result


def measure(
    model: "PreTrainedModel", batches: Iterable[list[list[int]]], layers: list[int], *, name: str,
    on_windows: Callable[[int], None],
) -> list[Measures]:  # fmt: skip
    """The measures of a model's layers over batches of windows of equal length; layer 0 is the embeddings."""
    statistics = [TokenStatistics() for _ in layers]
    for batch in batches:
        models.check_tokens(model, max(map(max, batch)), name)
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor(batch, device=model.device), output_hidden_states=True).hidden_states
        for layer, one in zip(layers, statistics, strict=True):
            try:
                one.add(hidden[layer])
            except MatrixError as error:
                where = f"{name}, {layer_name(layer)}, window {one.windows + 1}"
                raise type(error)(f"{where}: {error}") from None
        on_windows(statistics[0].windows)
    return [one.measures() for one in statistics]


def choose_layers(layers: str, depth: int) -> list[int]:
    """The layers that ``"all"``, ``"last"`` or numbers separated by commas stand for, of ``depth`` layers."""
    if layers in ("all", "last"):
        return list(range(depth + 1)) if layers == "all" else [depth]
    try:
        chosen = sorted({int(number) for number in layers.split(",")})
    except ValueError:
        raise ConfigError(f"--layers {layers!r}: pass all, last, or numbers such as 0,6,12.") from None
    if outside := [number for number in chosen if not 0 <= number <= depth]:
        raise ConfigError(f"--layers: there is no layer {outside[0]}; 0 is the embeddings, {depth} the last layer.")
    return chosen


def _measure_both(settings: DiagnoseSettings, device: torch.device, on_progress: Progress) -> dict[str, Any]:
    next(reading.read_blocks(settings.text))  # a wrong path is an error before models are opened
    place, _ = models.find_model(settings.model)
    model = models.open_body(place)
    tokenizer = models.open_tokenizer(place)
    reference = _open_reference(settings, model)
    layers = choose_layers(settings.layers, _config(model).num_hidden_layers)
    length = _window_length(settings.window, [model] if reference is None else [model, reference])
    readers = 1 if reference is None else 2
    text = _Text(settings, tokenizer, length=length, readers=readers, on_progress=on_progress)

    about = _about(settings.model, model)
    measures = text.measure(model.to(device), layers, name=settings.model)
    del model  # the reference needs the device now
    rows = [{"layer": layer, **_values(own)} for layer, own in zip(layers, measures, strict=True)]
    about_reference = None
    if reference is not None:
        name = str(settings.reference)
        is_random = name == UNTRAINED or name.startswith(models.FROM_CONFIG)
        about_reference = _about(name, reference) | ({"seed": settings.seed} if is_random else {})
        others = text.measure(reference.to(device), layers, name=name)
        for row, own, other in zip(rows, measures, others, strict=True):
            row |= {"reference": _values(other), "diff_erank": other.erank - own.erank}
    return {
        "model": about,
        "reference": about_reference,
        "text": str(settings.text),
        "max_tokens": settings.max_tokens,
        "window": length,
        "special_tokens": {
            side: tokenizer.convert_ids_to_tokens(ids) for side, ids in (("before", text.before), ("after", text.after))
        },
        "windows": measures[0].windows,
        "tokens": measures[0].tokens,
        "rows": rows,
        "environment": {**devices.environment(device), "transformers": importlib.metadata.version("transformers")},
    }


class _Text:
    """The text of a diagnosis, which one model after the other reads in windows of the same length."""

    def __init__(
        self, settings: DiagnoseSettings, tokenizer: "PreTrainedTokenizerBase", *, length: int, readers: int,
        on_progress: Progress,
    ):  # fmt: skip
        self.before, self.after = special_tokens(tokenizer)  # of every window
        self._settings, self._tokenizer, self._length = settings, tokenizer, length
        self._readers, self._on_progress = readers, on_progress
        self._size = max(settings.text.stat().st_size, 1)
        self._bytes = self._finished = 0  # read by the model that reads now; models before it

    def measure(self, model: "PreTrainedModel", layers: list[int], *, name: str) -> list[Measures]:
        """The measures of the layers of the model that reads now."""
        measures = measure(model, self._batches(), layers, name=name, on_windows=partial(self._report, name))
        self._finished += 1
        return measures

    def _batches(self) -> Iterator[list[list[int]]]:
        windows = reading.token_windows(
            self._blocks(), self._encode, length=self._length, before=self.before, after=self.after,
            max_tokens=self._settings.max_tokens,
        )  # fmt: skip
        while batch := list(itertools.islice(windows, self._settings.batch_size)):
            yield batch

    def _blocks(self) -> Iterator[str]:
        self._bytes = 0
        for block in reading.read_blocks(self._settings.text):
            yield block  # whoever comes back for the next one has measured it
            self._bytes += len(block.encode())

    def _encode(self, block: str) -> list[int]:
        tokens: list[int] = self._tokenizer(block, add_special_tokens=False, verbose=False).input_ids
        return tokens

    def _report(self, name: str, windows: int) -> None:
        share = self._bytes / self._size
        if most := self._settings.max_tokens:
            share = max(share, windows * self._length / most)
        self._on_progress(name, windows, (self._finished + min(share, 1.0)) / self._readers)


def _open_reference(settings: DiagnoseSettings, model: "PreTrainedModel") -> Any | None:
    if settings.reference is None:
        return None
    if settings.reference == UNTRAINED:
        return models.untrained(model, seed=settings.seed)
    reference = models.open_body(models.find_model(settings.reference)[0], seed=settings.seed)
    for what, key in (("layers", "num_hidden_layers"), ("hidden dimensions", "hidden_size")):
        ours, theirs = getattr(_config(model), key), getattr(_config(reference), key)
        if ours != theirs:
            raise ConfigError(
                f"{settings.reference} has {theirs} {what}, but {settings.model} has {ours}: pass a "
                f"reference of the same architecture."
            )
    return reference


def _window_length(window: int | None, bodies: Sequence["PreTrainedModel"]) -> int:
    limit = min((length for body in bodies if (length := models.context_length(body))), default=None)
    if window is None:
        return min(_WINDOW, limit or _WINDOW)
    if limit and window > limit:
        raise ConfigError(f"--window {window}: the model's context is {limit} tokens.")
    return window


def _config(model: "PreTrainedModel") -> Any:
    """The configuration of the language model, also inside a larger model."""
    return model.config.get_text_config()


def _about(name: str, model: "PreTrainedModel") -> dict[str, Any]:
    config = _config(model)
    return {"name": name, "type": model.config.model_type, "layers": config.num_hidden_layers,
            "width": config.hidden_size, "precision": str(model.dtype).removeprefix("torch.")}  # fmt: skip


def _values(measures: Measures) -> dict[str, Any]:
    return {key: value for key, value in asdict(measures).items() if key not in ("windows", "tokens")}
