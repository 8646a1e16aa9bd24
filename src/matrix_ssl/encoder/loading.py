"""Builds the encoders of run folders and loads them strictly."""

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from matrix_ssl import networks
from matrix_ssl.config import RunConfig, system
from matrix_ssl.config.untrusted import GIB
from matrix_ssl.encoder.architectures import outline
from matrix_ssl.errors import CheckpointError, ConfigError, RunFolderError, check_known, is_out_of_memory
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.folder import ENCODER, read_config

_WIDE = 256  # channels of the first stage from which tiny_resnet's size is checked
Weights = Literal["student", "teacher"]
_PREFIXES: dict[Weights, str] = {"student": "encoder.", "teacher": "teacher.encoder."}  # of the tensors in a method


def initialise_encoder(config: RunConfig) -> tuple[nn.Module, int]:
    """The freshly initialised encoder of a run, determined by its configuration, and the width of its features.

    Seeds PyTorch's generator, so that layers built next are determined by the configuration as well.

    Raises:
        ConfigError: the architecture is unknown or does not fit the images.
    """
    torch.manual_seed(config.seed)
    return _build(config)


def load_encoder(run: str | Path, *, weights: Weights = "student") -> nn.Module:
    """The trained encoder of a run folder, in evaluation mode on the CPU.

    It maps images (n, channels, s, s), normalised by the run's ``data.mean`` and ``data.std``, to features (n, k).

    Args:
        run: a run folder.
        weights: ``"student"``, the trained encoder, or ``"teacher"``, its moving average.

    Raises:
        ConfigError: ``weights`` is neither.
        RunFolderError: it is not a run folder.
        CheckpointError: the run has no such weights yet, or they do not match the network.
    """
    check_known("weights", weights, get_args(Weights))
    run = Path(run)
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
        encoder, _ = _build(read_config(run))
    tensors, source = _weights(run, weights)
    checkpoint.load_strictly(encoder, tensors, source)
    return encoder.eval()


def load_step(path: Path, *, weights: Weights = "student") -> nn.Module:
    """The encoder after a step of a run, from a file in its ``checkpoints``; otherwise like ``load_encoder``.

    Raises:
        CheckpointError: the file is damaged or has no such weights, or they do not match the network.
        RunFolderError: it is not in a run folder.
    """
    saved = checkpoint.load_checkpoint(path)
    tensors = _under(_PREFIXES[weights], saved)
    if not tensors:
        raise CheckpointError(f"{path} has no {weights}: its method has none; use the student.")
    with torch.random.fork_rng(devices=[]):
        encoder, _ = _build(read_config(path.parent.parent))
    checkpoint.load_strictly(encoder, tensors, str(path))
    return encoder.eval()


def _check_size(config: RunConfig) -> None:
    """Raises ConfigError for an encoder of configurable size that does not fit in memory, before it takes any."""
    network = config.network
    if network.encoder == networks.TINY_RESNET and network.width < _WIDE:
        return
    if network.encoder != networks.TINY_RESNET and not network.configuration:
        return  # the size follows from the name
    try:
        shapes = outline(network, image_size=config.data.image_size, channels=len(config.data.mean)).state_dict()
    except (RuntimeError, ArithmeticError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"network.encoder={network.encoder} cannot be built ({reason}): change network.width."
        ) from error
    needed, (_, free) = sum(tensor.nbytes for tensor in shapes.values()), system.memory()
    if needed > free:
        raise ConfigError(
            f"network.encoder={network.encoder} needs {needed / GIB:.1f} GiB for its weights, and {free / GIB:.1f} GiB "
            f"are free: choose a smaller one."
        )


def _build(config: RunConfig) -> tuple[nn.Module, int]:
    if not config.data.mean:
        raise ConfigError(
            "data.mean is empty, and matrix-ssl pretrain alone measures it: take data.channels, data.value_range, "
            "data.mean and data.std from the config.json of a run."
        )
    _check_size(config)
    return networks.build_encoder(
        config.network.encoder,
        channels=len(config.data.mean),
        image_size=config.data.image_size,
        stem=config.network.stem,
        width=config.network.width,
        patch_size=config.network.patch_size,
        configuration=config.network.configuration,
        any_size=any(view.image_size not in (0, config.data.image_size) for view in config.views),
    )


def _weights(run: Path, weights: Weights) -> tuple[dict[str, Tensor], str]:
    if weights == "student":
        path = run / ENCODER
        if not path.exists():
            raise CheckpointError(f"{run} has no {ENCODER} yet; let its pre-training finish.")
        try:
            return checkpoint.read_encoder(run), str(path)
        except CheckpointError as error:
            if isinstance(error.__cause__, RunFolderError):  # the file is from a different run, and the error says so
                raise
            raise CheckpointError(f"{error} Put the run's own file back, or run its command again.") from error
    newest, _ = checkpoint.load_newest(run)
    tensors = _under(_PREFIXES[weights], newest) if newest else {}
    if newest is None or not tensors:
        raise CheckpointError(
            f"{run} has no teacher: its checkpoint is missing or its method has none; use the student."
        )
    return tensors, f"the teacher after step {newest.step}"


def _under(prefix: str, saved: checkpoint.Checkpoint) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in saved.model.items() if name.startswith(prefix)}
