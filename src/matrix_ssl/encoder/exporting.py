"""The encoder of a run as files for other programs, with a model card."""

import hashlib
import json
import tempfile
from pathlib import Path

from matrix_ssl.encoder import Weights, formats, load_encoder
from matrix_ssl.encoder.card import CARD, method_of, model_card
from matrix_ssl.encoder.formats import FORMATS, Format, Made, Model
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.runs.files import cannot_write, check_writable, read_json, write_atomically
from matrix_ssl.runs.folder import SUMMARY, read_config, unfinished

# names of the files if none is given; other programs tell formats by these endings
_DEFAULT = {
    "safetensors": "export.safetensors",
    "torchvision": "export.pth",
    "timm": "export-timm.safetensors",
    "huggingface": "export-huggingface",
    "detectron2": "export-detectron2.pth",
    "onnx": "export.onnx",
}
_ENDINGS = {"timm": ".safetensors", "detectron2": ".pth", "onnx": ".onnx"}


def export(run: Path, target: Path | None = None, *, form: Format, weights: Weights = "student") -> str:
    """Writes a run's encoder for other programs, after their own libraries have loaded it back, and a model card.

    ``safetensors`` keeps the names of this package and everything that ``matrix-ssl import`` needs. ``torchvision`` and
    ``detectron2`` are state dicts for ``torch.load``, ``timm`` a checkpoint of ``timm.create_model``, ``huggingface`` a
    folder for ``transformers.AutoModel``, ``onnx`` a graph from pixels in [0, 1] to features.

    Args:
        run: a run folder.
        target: the file, or for ``huggingface`` the folder; None: a file in the run folder that is named by the format.
        form: one of ``formats.FORMATS``.
        weights: student or teacher.

    Returns:
        Sentences on what was written and how to load it.

    Raises:
        ConfigError: the format cannot hold the architecture; the message names those that can.
        CheckpointError: the run has no such weights, or what was written does not load back bit by bit.
        MissingExtra: the library that the format is for is not installed.
        RunFolderError: the run or the target cannot be used.
    """
    model = _model(run, weights)
    reason = formats.refusal(form, model)
    if reason is not None:
        others = " or ".join(other for other in FORMATS if formats.refusal(other, model) is None)
        raise ConfigError(f"--format {form}: {reason}; use --format {others}.")
    target = target or run / _DEFAULT[form]
    if not target.name.endswith(_ENDINGS.get(form, "")):
        raise ConfigError(f"--out {target}: a file for {form} must end in {_ENDINGS[form]}.")
    folder = form == "huggingface"
    if not folder:
        check_writable(target)
    with tempfile.TemporaryDirectory() as made_in:
        made = _make(form, model, Path(made_in), target.name)
        files = {path.name: path.read_bytes() for path in sorted(Path(made_in).iterdir())}
    digest = hashlib.sha256(files[made.weights]).hexdigest()
    card = model_card(
        config=model.config,
        summary=read_json(run / SUMMARY) if (run / SUMMARY).exists() else {},
        weights=weights,
        facts={"File": f"{made.weights}, SHA-256 {digest}"},
        library=made.library, code=made.code, notes=made.notes,
    ).encode(errors="backslashreplace")  # fmt: skip
    if folder:
        _write_folder(target, files | {CARD: card})
    else:
        _write(target, files[target.name])
        _write(target.with_name(f"{target.name}.md"), card)
    code = "\n".join(f"    {line}".rstrip() for line in made.code.splitlines())
    return "\n".join([f"{target}: {made.said}, sha256 {digest[:12]}. Load it with", code, *made.notes])


def _model(run: Path, weights: Weights) -> Model:
    config = read_config(run)
    data, network = config.data, config.network
    metadata = {"architecture": network.encoder, "weights": weights, "method": method_of(config)}
    saved = {"image_size": data.image_size, "mean": data.mean, "std": data.std, "crop_fraction": data.crop_fraction,
             "stem": network.stem}  # fmt: skip
    encoder = load_encoder(run, weights=weights)
    return Model(encoder, config, metadata | {name: json.dumps(value) for name, value in saved.items()})


def _make(form: Format, model: Model, folder: Path, name: str) -> Made:
    match form:
        case "safetensors":
            return formats.make_safetensors(model, folder, name)
        case "torchvision":
            return formats.make_torchvision(model, folder, name)
        case "timm":
            return formats.make_timm(model, folder, name)
        case "huggingface":
            return formats.make_huggingface(model, folder, name)
        case "detectron2":
            return formats.make_detectron2(model, folder, name)
        case "onnx":
            from matrix_ssl.encoder.onnx_file import make_onnx

            return make_onnx(model, folder, name)


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _write_folder(target: Path, files: dict[str, bytes]) -> None:
    """Writes the files of an export, ``config.json`` last, into a folder that holds nothing else.

    What an export left there that was killed is completed or removed.
    """
    try:
        left = [path for name in files for path in unfinished(target, name)]
        known = {*files, *(path.name for path in left)}
        foreign = sorted(path.name for path in target.iterdir() if path.name not in known) if target.exists() else []
        if foreign:
            raise RunFolderError(f"{target} holds other files, such as {foreign[0]}: choose another --out.")
        target.mkdir(exist_ok=True)
        for path in left:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    for name in sorted(files, key=lambda name: name == "config.json"):
        _write(target / name, files[name])
