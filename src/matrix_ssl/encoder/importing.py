"""Turns a checkpoint of another program into a run folder that every command accepts."""

from pathlib import Path

from matrix_ssl import config as configuration
from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.card import CARD, IMPORTED, model_card
from matrix_ssl.encoder.opening import Opened
from matrix_ssl.errors import RunFolderError
from matrix_ssl.runs.checkpoint import save_weights
from matrix_ssl.runs.files import write_atomically, write_json
from matrix_ssl.runs.folder import CONFIG, ENCODER, SUMMARY, check_folder, lock, read_config, tidy

_CODE = """from matrix_ssl.encoder import load_encoder

encoder = load_encoder(RUN)  # RUN: the path of this folder"""


def import_run(opened: Opened, run: Path, *, source: Path, branch: Weights) -> None:
    """Writes ``config.json``, ``encoder.safetensors``, a model card and, last, ``summary.json``.

    Args:
        opened: the encoder, of ``opening.open_checkpoint``.
        run: a folder that is empty or does not exist. That of an interrupted import is completed.
        source: the checkpoint, for the record.
        branch: which of its encoders this is, for the record.

    Raises:
        RunFolderError: the folder holds other files or cannot be written.
    """
    check_folder(run)
    with lock(run):
        begun = (run / CONFIG).exists()
        if begun and ((run / SUMMARY).exists() or read_config(run) != opened.config):
            raise RunFolderError(f"{run} already holds a run; choose a different folder.")
        tidy(run)
        write_json(run / CONFIG, configuration.to_dict(opened.config))
        save_weights(run / ENCODER, opened.encoder, {"weights": "student"})
        summary = {
            "recipe": IMPORTED,
            "finished": True,
            "steps": 0,
            "epochs": 0,
            "parameters": sum(parameter.numel() for parameter in opened.encoder.parameters()),
            "seconds": 0.0,
            "seconds_training": 0.0,
            "skipped": 0,
            "bad_steps": 0,
            "imported": {
                "file": source.name,
                "sha256": opened.sha256,
                "branch": branch,
                "matched": opened.text,
                "tensors": opened.counts.to_dict() if opened.counts else None,
            },
        }
        text = model_card(
            config=opened.config, summary=summary, weights="student",
            facts={}, library="matrix-ssl", code=_CODE, notes=[],
        )  # fmt: skip
        write_atomically(run / CARD, lambda file: file.write(text.encode(errors="backslashreplace")))
        write_json(run / SUMMARY, summary)
