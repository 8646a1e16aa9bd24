"""Measures the token representations of a language model over a text, layer by layer, beside those of a reference.

The models read the text one after the other, each in one pass and window by window; of what they give, the sums of
``TokenStatistics`` are kept. So memory is that of the models, a batch of hidden states, and (d, d) numbers in float64 a
layer, however long the text is. The device holds one model at a time.
"""

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from matrix_ssl.errors import ConfigError, MatrixError
from matrix_ssl.llm import models
from matrix_ssl.llm.diagnose import windows as reading
from matrix_ssl.llm.diagnose.measures import Measures, TokenStatistics
from matrix_ssl.llm.score import find_model
from matrix_ssl.report.diagnosis import PAGE, RESULT, layer_name, write_page
from matrix_ssl.runs import devices
from matrix_ssl.runs.files import check_writable, write_json
from matrix_ssl.runs.folder import lock, unfinished

UNTRAINED = "untrained"
_WINDOW = 512  # tokens, where the model can read as many

Progress = Callable[[str, int], None]  # which model, and how many windows it has read


@dataclass(frozen=True)
class DiagnoseSettings:
    """Everything that decides what a diagnosis computes."""

    model: str  # a run of fine-tuning, a folder in safetensors with its tokenizer, or a name of the hub
    text: Path  # UTF-8
    reference: str | None = None  # another one, whose tokenizer is not used, or "untrained"
    layers: str = "all"  # "all", "last", or numbers with commas between; 0 is the output of the embeddings
    max_tokens: int | None = None  # of the text
    window: int | None = None  # tokens a window, special ones among them; None: 512, or the model's limit below that
    batch_size: int = 8  # windows that a model reads at a time; no measure depends on it
    seed: int = 0  # of the untrained reference


def diagnose(
    settings: DiagnoseSettings, out: Path, *, device: torch.device, on_progress: Progress = lambda name, windows: None
) -> dict[str, Any]:
    """Measures the model and the reference, writes ``diagnose.json`` and ``diagnose.html`` into a folder.

    What an earlier call has left there is replaced when all is computed, not before.

    Returns:
        What ``diagnose.json`` holds.

    Raises:
        CheckpointError: a model or the tokenizer cannot be opened.
        ConfigError: a setting cannot work with the model, or the reference has another depth or width.
        DataError: the text cannot be read, or has fewer than two tokens.
        MatrixError: hidden states are not finite, or all equal; the error names the layer.
        MissingExtra: transformers is not installed.
        RunFolderError: the folder cannot be written.
    """
    with lock(out):
        for name in (RESULT, PAGE):
            check_writable(out / name)
            for left in unfinished(out, name):
                left.unlink(missing_ok=True)
        result = _measure_both(settings, device, on_progress)
        write_json(out / RESULT, result)
        write_page(out, result)
    return result


def measure(
    model: Any, batches: Iterable[list[list[int]]], layers: Sequence[int], *, name: str, on_progress: Progress
) -> list[Measures]:
    """The measures of the layers of a model of transformers, over batches of windows of tokens of one length each.

    Args:
        model: gives ``hidden_states``: first the output of the embeddings, then of every layer.
        layers: which of these.
        name: of the model, for errors and progress.

    Raises:
        ConfigError: the model has no embedding for a token.
        MatrixError: hidden states are not finite, or all equal within a window; the error names layer and window.
    """
    statistics = [TokenStatistics() for _ in layers]
    vocabulary = model.get_input_embeddings().num_embeddings
    for batch in batches:
        if (largest := max(map(max, batch))) >= vocabulary:
            raise ConfigError(
                f"{name} knows {vocabulary} tokens, but the tokenizer gives number {largest}: they differ."
            )
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor(batch, device=model.device), output_hidden_states=True).hidden_states
        for layer, found in zip(layers, statistics, strict=True):
            try:
                found.add(hidden[layer])
            except MatrixError as error:
                where = f"{name}, {layer_name(layer)}, window {found.windows + 1}"
                raise type(error)(f"{where}: {error}") from None
        on_progress(name, statistics[0].windows)
    return [found.measures() for found in statistics]


def choose_layers(wanted: str, depth: int) -> list[int]:
    """The numbers of the layers that ``"all"``, ``"last"`` or numbers with commas between them mean.

    Raises:
        ConfigError: it is none of these, or the model, of ``depth`` layers, has no such layer.
    """
    if wanted in ("all", "last"):
        return list(range(depth + 1)) if wanted == "all" else [depth]
    try:
        chosen = sorted({int(number) for number in wanted.split(",")})
    except ValueError:
        raise ConfigError(f"--layers {wanted!r}: write all, last, or numbers such as 0,6,12.") from None
    outside = [number for number in chosen if not 0 <= number <= depth]
    if outside:
        raise ConfigError(f"--layers: there is no layer {outside[0]}; 0 is the embeddings, {depth} the last one.")
    return chosen


def _measure_both(settings: DiagnoseSettings, device: torch.device, on_progress: Progress) -> dict[str, Any]:
    next(reading.read_blocks(settings.text))  # a wrong path is told before models are opened
    place = _place(settings.model)
    model = models.open_body(place)
    tokenizer = models.open_tokenizer(place)
    reference = _open_reference(settings, model)
    layers = choose_layers(settings.layers, _config(model).num_hidden_layers)
    length = _window_length(settings.window, [model] if reference is None else [model, reference])
    before, after = reading.special_tokens(tokenizer)

    def batches() -> Iterator[list[list[int]]]:
        windows = reading.token_windows(
            reading.read_blocks(settings.text),
            lambda block: tokenizer(block, add_special_tokens=False, verbose=False).input_ids,
            length=length,
            before=before,
            after=after,
            max_tokens=settings.max_tokens,
        )
        return reading.batches(windows, settings.batch_size)

    names = settings.model, str(settings.reference)
    about = _about(names[0], model)
    found = measure(model.to(device), batches(), layers, name=names[0], on_progress=on_progress)
    del model  # the device is for the reference now
    about_reference, others = None, None
    if reference is not None:
        about_reference = _about(names[1], reference) | ({"seed": settings.seed} if names[1] == UNTRAINED else {})
        others = measure(reference.to(device), batches(), layers, name=names[1], on_progress=on_progress)
    return {
        "model": about,
        "reference": about_reference,
        "text": str(settings.text),
        "max_tokens": settings.max_tokens,
        "window": length,
        "special_tokens": {
            "before": tokenizer.convert_ids_to_tokens(before),
            "after": tokenizer.convert_ids_to_tokens(after),
        },
        "windows": found[0].windows,
        "tokens": found[0].tokens,
        "rows": _rows(layers, found, others),
        "environment": {**devices.environment(device), "transformers": importlib.metadata.version("transformers")},
    }


def _open_reference(settings: DiagnoseSettings, model: Any) -> Any | None:
    if settings.reference is None:
        return None
    if settings.reference == UNTRAINED:
        return models.untrained(model, seed=settings.seed)
    reference = models.open_body(_place(settings.reference))
    for what, key in (("layers", "num_hidden_layers"), ("wide hidden states", "hidden_size")):
        ours, theirs = getattr(_config(model), key), getattr(_config(reference), key)
        if ours != theirs:
            raise ConfigError(
                f"{settings.reference} has {theirs} {what}, but {settings.model} has {ours}: layers are compared one "
                f"by one, so the reference has to be of the same architecture."
            )
    return reference


def _window_length(wanted: int | None, models: Sequence[Any]) -> int:
    limits = [getattr(_config(model), "max_position_embeddings", None) for model in models]
    limit = min((limit for limit in limits if limit), default=None)
    if wanted is None:
        return min(_WINDOW, limit or _WINDOW)
    if limit and wanted > limit:
        raise ConfigError(f"--window {wanted}: the model reads up to {limit} tokens at a time.")
    return wanted


def _place(model: str) -> str:
    """Where the model lies: the folder in a run, the folder itself, or the name of the hub."""
    return str(find_model(Path(model))[0]) if models.is_folder(model) else model


def _config(model: Any) -> Any:
    """What describes the language model, also where it is a part of a larger one."""
    return model.config.get_text_config()


def _about(name: str, model: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": model.config.model_type,
        "layers": _config(model).num_hidden_layers,
        "width": _config(model).hidden_size,
        "precision": str(model.dtype).removeprefix("torch."),
    }


def _rows(layers: Sequence[int], found: Sequence[Measures], others: Sequence[Measures] | None) -> list[dict[str, Any]]:
    """A row a layer: the model's measures, and those of the reference with the difference of eranks."""
    rows = [{"layer": layer, **_values(measures)} for layer, measures in zip(layers, found, strict=True)]
    if others is not None:
        for row, other in zip(rows, others, strict=True):
            row["reference"] = _values(other)
            row["diff_erank"] = other.erank - row["erank"]
    return rows


def _values(measures: Measures) -> dict[str, Any]:
    return {key: value for key, value in asdict(measures).items() if key not in ("windows", "tokens")}
