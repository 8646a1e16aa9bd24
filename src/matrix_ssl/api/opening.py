"""Runs and public encoders by WHERE they are."""

from pathlib import Path

from torch import nn

from matrix_ssl import networks
from matrix_ssl.api.run import Run
from matrix_ssl.errors import ConfigError, MatrixSSLError


def open(
    where: str | Path, *, encoder: nn.Module | None = None, out: str | Path | None = None, download: bool = False
) -> Run:
    """A run, or an encoder of elsewhere with the same functions.

    Args:
        where: a run folder, a checkpoint file, ``torchvision/NAME[:WEIGHTS]``, ``timm/NAME[.TAG]``, ``hf:NAME`` or
            ``random/NAME``. A ``Path`` is always a path.
        encoder: a module of the same structure, for a run that was trained with a module of a program; its weights do
            not matter.
        out: the run folder in which ``evaluate`` writes about an encoder of elsewhere; None: ``runs/NAME``.
        download: fetch published weights that the local cache lacks; by default nothing asks a network.

    Raises:
        MatrixSSLError: the encoder is absent, damaged or does not match.
    """
    run = Run(where, out=out, download=download)
    if encoder is not None:
        _give_encoder(run, encoder)
    return run


def _give_encoder(run: Run, module: nn.Module) -> None:
    """Makes a module the architecture of a run that was trained with one."""
    name = run.config.network.encoder
    if not name.startswith(networks.MODULE):
        raise ConfigError(f"encoder= is for a run that was trained with a module; that of {run.where} is {name!r}.")
    networks.register_encoder(module, name=name)
    try:
        run.encoder()
    except MatrixSSLError:
        networks.forget_encoder(name)
        raise
