"""The body of a language model, without its head: what gives the hidden states. No code of a model's folder is run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from matrix_ssl.data.hub import open_pretrained
from matrix_ssl.errors import CheckpointError, ConfigError, MissingExtra
from matrix_ssl.llm import models


def open_body(model: str) -> Any:
    """The body of a model in the precision of its weights, for evaluation, on the CPU.

    Args:
        model: a folder with a configuration and safetensors, or a name of the hub.

    Raises:
        CheckpointError: configuration or weights are missing, damaged or not complete.
        ConfigError: it is an adapter, or has a decoder that reads an encoder.
        MissingExtra: transformers is not installed.
    """
    if models.is_folder(model):
        models.check_folder(Path(model), adapter=False)
    with _quiet() as transformers:
        try:
            body, found = open_pretrained(
                transformers.AutoModel.from_pretrained, model, place=model,
                dtype="auto", use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
        except CheckpointError:
            raise
        except Exception as error:  # damaged files make the reader fail in any way
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            raise CheckpointError(f"{model} cannot be opened as a model: {reason}") from error
    # a pooler comes after the hidden states, and models that predict tokens are saved without one
    models.check_complete(model, (name for name in found["missing_keys"] if not name.startswith("pooler.")))
    if getattr(body.config, "is_encoder_decoder", False):
        raise ConfigError(f"{model} is an encoder with a decoder: only models that read one sequence are measured.")
    body.config.use_cache = False
    return body.eval()


def untrained(body: Any, *, seed: int) -> Any:
    """The same configuration with the random weights that transformers begins with, a function of the seed."""
    with _quiet() as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto = transformers.AutoModel
        return open_pretrained(auto.from_config, body.config, place=body.config.name_or_path, dtype=body.dtype).eval()


@contextmanager
def _quiet() -> Iterator[Any]:
    """transformers without its bars and remarks; what matters of them is an error here."""
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtra("transformers", "llm") from error
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
