"""The contract of a user's method, checked when it is built and at every step, with a message for each mistake."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from matrix_ssl.errors import ConfigError
from matrix_ssl.methods._base import Method, StepOutput


def create_method(
    kind: type[Method], name: str, encoder: nn.Module, feature_dim: int, options: Mapping[str, Any]
) -> Method:
    """Builds a method of class ``kind`` with its networks; ``name`` is its name in the run, for error messages.

    Raises:
        ConfigError: the class lacks ``forward``, has a different constructor, or does not store its encoder.
    """
    where = f"method.name={name!r}: {kind.__name__}"
    if lacking := sorted(kind.__abstractmethods__):
        raise ConfigError(f"{where} has no {', '.join(lacking)}, which a Method needs.")
    try:
        inspect.signature(kind.__init__).bind(None, encoder, feature_dim, **options)
    except TypeError as error:
        raise ConfigError(
            f"{where} is built with an encoder and its number of features ({error}): write "
            "def __init__(self, encoder, feature_dim, *, option=default)."
        ) from None
    method = kind(encoder, feature_dim, **options)
    if not isinstance(getattr(method, "encoder", None), nn.Module):
        raise ConfigError(f"{where} keeps no encoder: write self.encoder = encoder in its __init__.")
    return method


def check_storable(options: Mapping[str, Any]) -> None:
    """Raises ConfigError for an option that a run folder cannot hold."""
    for name, value in options.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ConfigError(
                f"method.{name}={value!r:.80}: an option is a number, text, true or false, none, or a list of these."
            ) from None


def check_output(output: Any, name: str, rows: int) -> None:
    """Raises ConfigError unless a method's ``forward`` returned a valid ``StepOutput`` for ``rows`` images."""
    where = f"method.name={name!r}: forward returned"
    if not isinstance(output, StepOutput):
        raise ConfigError(f"{where} {_kind(output)}: return a StepOutput(loss, terms, features, student, teacher).")
    if not (isinstance(output.loss, Tensor) and output.loss.ndim == 0 and output.loss.requires_grad):
        raise ConfigError(f"{where} {_kind(output.loss)} as loss: a loss is a tensor () with a gradient.")
    if not isinstance(output.terms, Mapping):
        raise ConfigError(f"{where} {_kind(output.terms)} as terms: expected a dictionary of tensors ().")
    for term, value in output.terms.items():
        if not (isinstance(term, str) and isinstance(value, Tensor) and value.ndim == 0):
            raise ConfigError(f"{where} {_kind(value)} as terms[{term!r}]: a term is a tensor () under a name.")
    for part in ("features", "student", "teacher"):
        value = getattr(output, part)
        if not (isinstance(value, Tensor) and value.ndim == 2 and len(value) == rows):
            raise ConfigError(f"{where} {_kind(value)} as {part}: expected a tensor ({rows}, d), a row an image.")


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a value of type {type(value).__name__}"
    return f"a tensor {tuple(value.shape)}{'' if value.requires_grad else ' without a gradient'}"
