"""Opens runs and public encoders by WHERE they are."""

from pathlib import Path

from torch import nn

from matrix_ssl import networks
from matrix_ssl.api.run import Run
from matrix_ssl.errors import ConfigError, MatrixSSLError


def open(
    where: str | Path, *, encoder: nn.Module | None = None, out: str | Path | None = None, download: bool = False
) -> Run:
    """Opens a run, or an external encoder with the same interface.

    Args:
        where: a run folder, a checkpoint file, ``torchvision/NAME[:WEIGHTS]``, ``timm/NAME[.TAG]``, ``hf:NAME`` or
            ``random/NAME``. A ``Path`` is always a path.
        encoder: a module of the same structure, for a run that was trained with a module passed from Python; its
            weights do not matter.
        out: the run folder to which ``evaluate`` writes the results of an external encoder; None: ``runs/NAME``.
        download: download published weights that are not in the local cache; by default the network is not used.

    Raises:
        MatrixSSLError: the encoder is missing or damaged, or does not match.
    """
    run = Run(where, out=out, download=download)
    if encoder is not None:
        _give_encoder(run, encoder)
    return run


def _give_encoder(run: Run, module: nn.Module) -> None:
    """Registers a module as the architecture of a run that was trained with a module."""
    name = run.config.network.encoder
    if not name.startswith(networks.MODULE):
        raise ConfigError(f"encoder= is for a run that was trained with a module; that of {run.where} is {name!r}.")
    networks.register_encoder(module, name=name)
    try:
        run.encoder()
    except MatrixSSLError:
        networks.forget_encoder(name)
        raise
