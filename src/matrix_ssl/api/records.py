"""What a run keeps alongside its weights: a method or an encoder from outside this package, and a few views."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from matrix_ssl import networks
from matrix_ssl.config import RunConfig
from matrix_ssl.config.untrusted import expanded, read_file
from matrix_ssl.data.base import Source
from matrix_ssl.data.views.first_views import first_views
from matrix_ssl.methods import find_method
from matrix_ssl.runs.checkpoint import digest
from matrix_ssl.runs.files import read_object, write_atomically, write_json, write_text
from matrix_ssl.runs.folder import METHOD, MODULE, VIEWS, identity


def keep_own_parts(run: Path, config: RunConfig, say: Callable[[str], None]) -> None:
    """Writes the source of a method to ``own-method.py`` and the structure of a module to ``own-encoder.json``.

    Existing files are kept; a warning says so if they differ.
    """
    _keep_method(run, config.method.name, say)
    _keep_module(run, config.network.encoder, say)


def keep_views(run: Path, config: RunConfig, source: Source) -> None:
    """Writes ``views.npz``, a few training images with their views, for the page; an existing file is kept."""
    if not (run / VIEWS).exists():
        arrays: dict[str, Any] = {**first_views(config, source), "run": np.array(identity(run))}
        write_atomically(run / VIEWS, lambda file: np.savez_compressed(file, **arrays))


def _keep_method(run: Path, name: str, say: Callable[[str], None]) -> None:
    if not name.endswith(".py") and ":" not in name:
        return
    try:
        text = expanded(name).read_text("utf-8") if name.endswith(".py") else inspect.getsource(find_method(name))
    except (OSError, TypeError):  # a class without source, as in a program read from standard input
        return
    path = run / METHOD
    if not path.exists():
        write_text(path, text)
    elif read_file(path).decode(errors="replace") != text:
        say(f"Warning: the source of the method differs from {path}, with which this run began.")


def _keep_module(run: Path, name: str, say: Callable[[str], None]) -> None:
    if not name.startswith(networks.MODULE):
        return
    module = networks.registered_encoder(name)
    weights = digest(module.state_dict())
    path = run / MODULE
    if not path.exists():
        write_json(path, {"name": name, "structure": repr(module), "sha256": weights})
    elif read_object(path).get("sha256") != weights:
        say("Warning: the module has different weights than at the start of this run. Those of the start count.")
