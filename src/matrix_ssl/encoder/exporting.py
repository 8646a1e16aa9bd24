"""Exports the encoder of a run as files for other programs, with a model card.

To add a format: a function that writes it (``formats.py`` or a file of its own), a row of ``FORMATS``, and its name in
the options of the command.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matrix_ssl.config import DataConfig, system
from matrix_ssl.config.reading import READING
from matrix_ssl.data.sources import check_outside
from matrix_ssl.encoder import Weights, formats, load_encoder
from matrix_ssl.encoder.card import CARD, IMPORTED, check_card, model_card
from matrix_ssl.encoder.formats import Exported, Model
from matrix_ssl.encoder.onnx_file import write_onnx
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.runs.files import cannot_write, read_object, temporary_folder, write_atomically
from matrix_ssl.runs.folder import SUMMARY, check_output, read_config, refuse_links, unfinished

_LOCK = ".lock"  # in a folder that is being written


@dataclass(frozen=True)
class Format:
    """How an encoder is exported to a format."""

    write: Callable[[Model, Path, str], Exported]  # into a folder, under a name
    default: str  # name of the file, or of the folder, in the run
    ending: str = ""  # that the program requires; empty: any
    refuses: Callable[[Model], str | None] = formats.holds_all  # why it cannot hold an encoder
    is_folder: bool = False


FORMATS = {
    "safetensors": Format(formats.write_safetensors, "export.safetensors"),
    "torchvision": Format(formats.write_torchvision, "export.pth", "", formats.not_in_torchvision),
    "timm": Format(formats.write_timm, "export-timm.safetensors", ".safetensors", formats.not_in_timm),
    "huggingface": Format(formats.write_huggingface, "export-huggingface", "",
                          partial(formats.not_a_resnet, "huggingface"), is_folder=True),
    "detectron2": Format(formats.write_detectron2, "export-detectron2.pth", ".pth",
                         partial(formats.not_a_resnet, "detectron2")),
    "onnx": Format(write_onnx, "export.onnx", ".onnx"),
}  # fmt: skip


def export(run: Path, target: Path | None = None, *, form: str, weights: Weights = "student") -> str:
    """Writes a run's encoder for other programs, checked by loading it with their own libraries, and a model card.

    ``safetensors`` keeps the names of this package and everything that ``matrix-ssl import`` needs. ``torchvision`` and
    ``detectron2`` are state dicts for ``torch.load``, ``timm`` a checkpoint of ``timm.create_model``, ``huggingface`` a
    folder for ``transformers.AutoModel``, ``onnx`` a graph from pixels in [0, 1] to features.

    Args:
        run: a run folder.
        target: the file, or for ``huggingface`` the folder; None: one in the run folder, named after the format.
        form: one of ``FORMATS``.

    Returns:
        A text for the user: what was written, and how to load it.

    Raises:
        ConfigError: the format cannot hold the architecture; the message names formats that can.
        CheckpointError: the run has no such weights, or the file does not load back identically bit for bit.
        MissingExtra: the library of the format is not installed.
        RunFolderError: the run or the target cannot be used.
    """
    model, chosen = _model(run, weights), FORMATS[form]
    reason = chosen.refuses(model)
    if reason is not None:
        others = " or ".join(name for name, other in FORMATS.items() if other.refuses(model) is None)
        raise ConfigError(f"--format {form}: {reason}; use --format {others}.")
    target = target or run / chosen.default
    if not target.name.endswith(chosen.ending):
        raise ConfigError(f"--out {target}: a file for {form} must end in {chosen.ending}.")
    if target.is_relative_to(run):
        refuse_links(run)
    else:
        check_outside(target, model.config.data.source)
    card_path = target / CARD if chosen.is_folder else target.with_name(f"{target.name}.md")
    if not chosen.is_folder:
        check_output(target)
    check_card(card_path)
    with temporary_folder() as folder:
        exported = chosen.write(model, folder, target.name)
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    digest = hashlib.sha256(files[exported.weights]).hexdigest()
    from matrix_ssl.report.tables import read_evaluations  # slow to import, and only cards need it

    card = model_card(
        config=model.config,
        summary=read_object(run / SUMMARY) if (run / SUMMARY).exists() else {},
        weights=weights,
        facts={"File": f"{exported.weights}, SHA-256 {digest}"},
        library=exported.library, code=exported.code, notes=exported.notes,
        tables=[table for one in read_evaluations(run) if one.weights == weights for table in one.tables()],
    ).encode(errors="backslashreplace")  # fmt: skip
    if chosen.is_folder:
        _write_folder(target, files | {CARD: card})
    else:
        _write(target, files[target.name])
        _write(card_path, card)
    code = "\n".join(f"    {line}".rstrip() for line in exported.code.splitlines())
    place = "" if target.parent == Path() else f" in {target.parent}"
    return "\n".join([f"{target}: {exported.checked}, sha256 {digest[:12]}. To load it{place}:", code, *exported.notes])


def _model(run: Path, weights: Weights) -> Model:
    config = read_config(run)
    data, network = config.data, config.network
    method = "unknown" if config.recipe == IMPORTED else config.method.name
    metadata = {"architecture": network.encoder, "weights": weights, "method": method}
    saved = {"image_size": data.image_size, "mean": data.mean, "std": data.std, "crop_fraction": data.crop_fraction,
             "stem": network.stem}  # fmt: skip
    others = (*READING, "crop_mode")
    saved |= {name: getattr(data, name) for name in others if getattr(data, name) != getattr(DataConfig(), name)}
    if network.patch_size:
        saved["patch_size"] = network.patch_size
    if network.configuration:
        saved["configuration"] = network.configuration
    encoder = load_encoder(run, weights=weights)
    return Model(encoder, config, metadata | {name: json.dumps(value) for name, value in saved.items()})


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _write_folder(target: Path, files: dict[str, bytes]) -> None:
    """Writes ``config.json`` last; the folder may contain only files that a killed export left there.

    The folder is locked meanwhile, since two simultaneous exports would mix their files.
    """
    lock = target / _LOCK
    try:
        left = [path for name in files for path in unfinished(target, name)]
        known = {*files, _LOCK, *(path.name for path in left)}
        foreign = sorted(path.name for path in target.iterdir() if path.name not in known) if target.exists() else []
        if foreign:
            raise RunFolderError(f"{target} holds other files, such as {foreign[0]}; choose a different --out.")
        target.mkdir(exist_ok=True)
        with system.locked(lock):
            try:
                for path in left:
                    path.unlink(missing_ok=True)
                for name in sorted(files, key=lambda name: name == "config.json"):
                    _write(target / name, files[name])
            finally:
                lock.unlink()
    except BlockingIOError as error:
        raise RunFolderError(
            f"{target} is being written by {error.strerror}: wait for it or choose a different --out."
        ) from None
    except OSError as error:
        raise cannot_write(target, error) from error
