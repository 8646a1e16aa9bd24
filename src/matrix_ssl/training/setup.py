"""Pre-training: check a configuration, build what it describes, run it.

The state of a run after a step is a function of its configuration and the step alone: every random number is drawn from
them, so a checkpoint is only tensors and a step number, and a run that was killed ends with the same bits as one that
was not (same machine, same number of processes). The steps themselves are in ``loop``.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from matrix_ssl import distributed
from matrix_ssl.config import MethodConfig, RunConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import TrainingBatches
from matrix_ssl.data.randomness import permutation
from matrix_ssl.distributed import batch_norm
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.errors import ConfigError
from matrix_ssl.methods import Method, complete_options, find_method
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import ENVIRONMENT
from matrix_ssl.training import optim
from matrix_ssl.training.loop import Loop

PAPERS = "imagenet"  # the recipe that takes its values from the paper of each method
_DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


def complete(config: RunConfig) -> RunConfig:
    """The configuration with every option of its method filled in, so that it is written and compared whole.

    Raises:
        ConfigError: the method or one of its options does not exist, or an option is out of range.
    """
    method = find_method(config.method.name)
    options = complete_options(method, config.method.options)
    return dataclasses.replace(config, method=dataclasses.replace(config.method, options=options))


def use_method(config: RunConfig, name: str, *, papers: bool = True) -> RunConfig:
    """The run with another method, a name or the path of a Python file.

    Of the options that the recipe gives its own method, those stay that the other one has, too, such as the widths of
    the projector. The recipe ``imagenet`` gets the values of the method's own paper instead, unless ``papers``
    is false, as where methods are compared.

    Raises:
        ConfigError: the method does not exist.
    """
    if name == config.method.name:
        return config
    method = find_method(name)
    if papers and config.recipe == PAPERS:
        return method.recipe(dataclasses.replace(config, method=MethodConfig(name)))
    known = complete_options(method, {})
    options = {key: value for key, value in config.method.options.items() if key in known}
    return dataclasses.replace(config, method=MethodConfig(name, options))


def identify_data(config: RunConfig, source: Source) -> RunConfig:
    """The configuration with the number of images and the digest of their content filled in, by the main process."""
    digest = distributed.broadcast_object(source.digest if distributed.is_main() else None)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, images=len(source), digest=digest))


def headline(config: RunConfig, source: Source, device: torch.device) -> str:
    """One line on what is about to run and where."""
    processes = distributed.world_size()
    where = devices.device_name(device) + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else "")
    precision = devices.choose_precision(config.precision, device)
    return (
        f"{config.method.name} on {len(source)} images of {source.name!r}: {config.network.encoder}, "
        f"{config.data.image_size} px, {config.epochs} epochs of batch {config.batch_size}, seed {config.seed}; "
        f"{where}, {precision}, {processes} process{'es' if processes > 1 else ''}"
    )


def write_environment(run: Path, device: torch.device) -> None:
    """Writes ``environment.json``."""
    write_json(run / ENVIRONMENT, devices.environment(device))


def pretrain(
    config: RunConfig, run: Path, *, source: Source, device: torch.device, display: Display, events: Path | None = None
) -> dict[str, Any]:
    """Pre-trains an encoder, or goes on where an earlier call of the same configuration stopped.

    ``prepare``, then ``Loop.train``: the arguments, the summary it returns and what it raises are theirs.
    """
    return prepare(config, source=source, device=device, display=display).train(run, events)


def prepare(config: RunConfig, *, source: Source, device: torch.device, display: Display) -> Loop:
    """Builds everything that a run needs and writes nothing: what is wrong with the configuration shows here.

    Raises:
        ConfigError: the images, the batch, the encoder and the method do not fit each other.
    """
    source = _choose(source, config)
    precision = devices.choose_precision(config.precision, device)
    _prepare_torch(config, device)
    batches = TrainingBatches(
        source, config.data, (config.view1, config.view2), batch_size=config.batch_size, seed=config.seed,
        rank=distributed.rank(), world_size=distributed.world_size(), device=device, dtype=_DTYPES[precision],
    )  # fmt: skip
    method = build_method(config)
    batch_norm.synchronise_batch_norm(method, device.type)
    method.to(device, _DTYPES[precision])
    method.to(memory_format=torch.channels_last)  # faster convolutions, on CPUs too
    settings = config.optimizer
    optimizer = optim.build_optimizer(
        method,
        name=settings.name,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        groups=method.parameter_groups(),
    )
    autocast = torch.bfloat16 if precision == "bfloat16" else None
    return Loop(
        config, method=method, optimizer=optimizer, batches=batches, source=source, display=display, autocast=autocast
    )


def build_method(config: RunConfig) -> Method:
    """The method of a run with freshly initialised networks, a function of the configuration.

    Raises:
        ConfigError: the encoder is unknown or does not fit the images.
    """
    encoder, feature_dim = initialise_encoder(config)
    return find_method(config.method.name)(encoder, feature_dim, **config.method.options)


def _choose(source: Source, config: RunConfig) -> Source:
    if source.channels != len(config.data.mean):
        raise ConfigError(
            f"the images of {source.name!r} have {source.channels} channels, recipe {config.recipe!r} is for "
            f"{len(config.data.mean)} (data.mean has one number a channel): choose another recipe."
        )
    if not config.data.subset or config.data.subset >= len(source):
        return source
    return source.subset(sorted(permutation(len(source), config.seed)[: config.data.subset].tolist()))


def _prepare_torch(config: RunConfig, device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not config.deterministic
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with this only
            torch.use_deterministic_algorithms(True)
