"""Turns an encoder of another program into a run folder that every command accepts."""

from collections.abc import Callable
from pathlib import Path

from matrix_ssl import config as configuration
from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.card import CARD, IMPORTED, model_card
from matrix_ssl.encoder.loading import load_encoder
from matrix_ssl.encoder.opening import Opened, open_encoder
from matrix_ssl.encoder.where import PATH, Where, read_where
from matrix_ssl.errors import CheckpointError, ConfigError, RunFolderError
from matrix_ssl.runs.checkpoint import digest, save_encoder
from matrix_ssl.runs.files import write_json, write_text
from matrix_ssl.runs.folder import CONFIG, SUMMARY, claim, held, identity, read_config

_CODE = """from matrix_ssl.encoder import load_encoder

encoder = load_encoder(RUN)  # RUN: the path of this folder"""


def import_run(
    opened: Opened, run: Path, *, branch: Weights, fresh: bool = False, say: Callable[[str], None] = print
) -> None:
    """Writes ``config.json``, ``encoder.safetensors``, a model card and, last, ``summary.json``.

    ``run`` is a folder that is empty, does not exist or belongs to an interrupted import; ``fresh`` sets aside a run
    that is in it. ``branch`` is only recorded.
    """
    with held(run, fresh=fresh, say=say):
        claim(run, opened.config)
        if (run / SUMMARY).exists():
            raise RunFolderError(f"{run} is complete: choose another folder, or use --fresh to start over.")
        save_encoder(run, opened.encoder)
        summary = {
            "run": identity(run), "recipe": IMPORTED, "finished": True, "steps": 0, "epochs": 0,
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


def default_run(place: Where, *, branch: Weights = "student") -> Path:
    """The default run folder of an encoder that is not a run: its name, in ``runs``."""
    return Path("runs") / (place.folder if branch == "student" else f"{place.folder}-{branch}")


def as_run(
    where: str | Path, *, out: Path | None = None, weights: Weights = "student", download: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[Path, Weights]:  # fmt: skip
    """A run folder that contains the encoder WHERE, and which of the run's networks that is.

    A run folder is returned as it is. Any other encoder is imported into ``out``, or into ``runs`` under its name,
    unless an earlier call has done so.

    Raises:
        ConfigError: ``out`` is given for a run folder, which keeps its own results.
        RunFolderError: the folder holds a different encoder.
        MatrixSSLError: as for ``open_encoder`` and ``import_run``.
    """
    place = read_where(where)
    if place.kind == PATH and place.path.is_dir():
        read_config(place.path)
        if out is not None:
            raise ConfigError(f"--out {out}: the run {where} keeps its results in its own folder; remove --out.")
        return place.path, weights
    opened = open_encoder(where, weights=weights, download=download)
    run = out or default_run(place, branch=weights)
    say(f"{where} has its results in the run {run}. {opened.text}")
    if not (run / SUMMARY).exists():
        import_run(opened, run, branch=weights, say=say)
    elif not _holds(run, opened):
        raise RunFolderError(f"{run} holds a different encoder than {where}; choose another folder with --out.")
    return run, "student"


def _holds(run: Path, opened: Opened) -> bool:
    """Whether a finished run has the same encoder for the same images."""
    if not (run / CONFIG).exists() or configuration.differences(read_config(run), opened.config):
        return False
    try:
        return digest(load_encoder(run).state_dict()) == digest(opened.encoder.state_dict())
    except CheckpointError:  # damaged
        return False
