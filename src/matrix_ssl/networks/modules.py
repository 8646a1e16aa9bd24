"""A program's own modules as encoders: architectures known to this process only."""

import copy
import hashlib

from torch import nn

from matrix_ssl.errors import ConfigError, is_out_of_memory

MODULE = "module:"  # prefix of their names
_MODULES: dict[str, nn.Module] = {}  # by name


def register_encoder(module: nn.Module, *, name: str | None = None) -> str:
    """Registers a copy of a module as an architecture of this process, with its weights as the initialisation.

    Args:
        module: maps images (n, c, s, s) to features (n, k).
        name: one returned by an earlier call, perhaps in another process; None derives it from the module.

    Returns:
        Its name: the class name and a digest of the names and shapes of its tensors.

    Raises:
        ConfigError: it cannot be copied.
    """
    try:
        own = copy.deepcopy(module).cpu()
        tensors = sorted((key, tuple(tensor.shape)) for key, tensor in own.state_dict().items())
    except (RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"The encoder {type(module).__name__} cannot be copied ({reason}).") from error
    digest = hashlib.sha256(repr(tensors).encode()).hexdigest()[:8]
    name = name or f"{MODULE}{type(module).__name__}-{digest}"
    _MODULES[name] = own
    return name


def forget_encoder(name: str) -> None:
    """Undoes ``register_encoder``."""
    _MODULES.pop(name, None)


def registered_encoder(name: str) -> nn.Module:
    """A copy of the module registered under this name; ConfigError if this process has none."""
    if name not in _MODULES:
        raise ConfigError(
            f"network.encoder={name!r} is a torch.nn.Module of a program: open the run in Python, with "
            f"matrix_ssl.open(RUN, encoder=MODULE)."
        )
    return copy.deepcopy(_MODULES[name])
