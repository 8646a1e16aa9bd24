"""Turns a checkpoint of another program into a run folder that every command accepts."""

from collections.abc import Callable
from pathlib import Path

from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.card import CARD, IMPORTED, model_card
from matrix_ssl.encoder.opening import Opened
from matrix_ssl.errors import RunFolderError
from matrix_ssl.runs.checkpoint import save_weights
from matrix_ssl.runs.files import write_json, write_text
from matrix_ssl.runs.folder import ENCODER, SUMMARY, claim, held

_CODE = """from matrix_ssl.encoder import load_encoder

encoder = load_encoder(RUN)  # RUN: the path of this folder"""


def import_run(
    opened: Opened, run: Path, *, branch: Weights, fresh: bool = False, say: Callable[[str], None] = print
) -> None:
    """Writes ``config.json``, ``encoder.safetensors``, a model card and, last, ``summary.json``.

    ``run`` is a folder that is empty, does not exist or is that of an interrupted import; ``fresh`` sets aside a run
    that is in it. ``branch`` is for the record.
    """
    with held(run, fresh=fresh, say=say):
        claim(run, opened.config)
        if (run / SUMMARY).exists():
            raise RunFolderError(f"{run} is complete: choose another folder, or use --fresh to start over.")
        save_weights(run / ENCODER, opened.encoder, {"weights": "student"})
        summary = {
            "recipe": IMPORTED, "finished": True, "steps": 0, "epochs": 0,
            "parameters": sum(parameter.numel() for parameter in opened.encoder.parameters()),
            "seconds": 0.0, "seconds_training": 0.0, "skipped": 0, "bad_steps": 0,
            "imported": {"file": opened.where.label, "sha256": opened.sha256, "branch": branch, "matched": opened.text,
                         "tensors": opened.counts.to_dict() if opened.counts else None},
        }  # fmt: skip
        text = model_card(
            config=opened.config, summary=summary, weights="student",
            facts={}, library="matrix-ssl", code=_CODE, notes=[],
        )  # fmt: skip
        write_text(run / CARD, text)
        write_json(run / SUMMARY, summary)
