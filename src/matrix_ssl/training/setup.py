"""Checks the configuration of a pre-training and builds what it describes."""

import dataclasses
import inspect
import os
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from matrix_ssl import config as configuration
from matrix_ssl import distributed, networks
from matrix_ssl.config import MethodConfig, RunConfig
from matrix_ssl.config.recipes import follows_papers, other_methods
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import TrainingBatches
from matrix_ssl.data.sources import absolute, choose_subset
from matrix_ssl.distributed import batch_norm
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.errors import ConfigError, is_out_of_memory
from matrix_ssl.methods import Method, TeacherMethod, complete_options, create_method, find_method
from matrix_ssl.runs import devices
from matrix_ssl.runs.checkpoint import load_strictly
from matrix_ssl.runs.display import Display
from matrix_ssl.training import layers, optim
from matrix_ssl.training.pretraining import PreTraining


def complete(config: RunConfig) -> RunConfig:
    """The configuration with every option of its method filled in and checked, to be recorded and compared whole."""
    method = find_method(config.method.name)
    options = complete_options(method, config.method.options)
    return dataclasses.replace(config, method=dataclasses.replace(config.method, options=options))


def use_method(config: RunConfig, name: str, *, papers: bool = True) -> RunConfig:
    """The run with a different method, given by name or as the path of a Python file.

    The new method keeps those of the recipe's options that it has as well, such as the widths of the projector, and
    takes those that the recipe has for other methods, such as the momentum of a teacher. With a recipe that follows
    papers, such as ``imagenet``, the run takes the values of the new method's paper instead, unless ``papers`` is
    false, as when methods are compared. ``Method.choose_views`` adapts the views.
    """
    if name == config.method.name:
        return config
    method = find_method(name)
    if papers and follows_papers(config.recipe):
        return method.recipe(dataclasses.replace(config, method=MethodConfig(name)))
    known = complete_options(method, {})
    recommended = {**other_methods(config.recipe), **config.method.options}
    options = {key: value for key, value in recommended.items() if key in known}
    return dataclasses.replace(config, method=MethodConfig(name, options), views=method.choose_views(config.views))


def identify_data(config: RunConfig, source: Source) -> RunConfig:
    """The configuration with the number of images and the digest of their content filled in.

    The paths of the images become absolute, so that commands in other folders find them.
    """
    place = absolute(config.data.source)
    data = dataclasses.replace(config.data, source=place, images=len(source), digest=source.digest)
    return dataclasses.replace(config, data=data)


def settle_precision(config: RunConfig, device: torch.device, *, recorded: str | None) -> RunConfig:
    """Resolves the precision ``auto`` when a run starts: bfloat16 if the device supports it, else float32.

    An existing run keeps its own, whatever ``auto`` means here, so that it continues bit for bit.

    Args:
        recorded: the precision in the run's folder, None if there is no run. ``auto`` is from an earlier version, in
            which it meant float32 on CPUs, and stays in the folder.
    """
    asked = config.precision
    if recorded == "auto":
        keeps = asked in ("auto", devices.choose_precision("auto", device))
        return dataclasses.replace(config, precision="auto") if keeps else config
    if asked != "auto":
        return config
    usual = "bfloat16" if devices.has_bfloat16(device) else "float32"
    return configuration.override(config, [f"precision={recorded or usual}"])


def headline(config: RunConfig, source: Source, device: torch.device) -> str:
    """One line on what is about to run and where."""
    processes = distributed.world_size()
    threads = _counted(torch.get_num_threads(), "thread")
    where = devices.device_name(device) + (f", {threads}" if device.type == "cpu" else "")
    precision = devices.describe_precision(devices.choose_precision(config.precision, device), device)
    counts: Counter[int] = Counter()
    for view in config.views:
        counts[view.image_size or config.data.image_size] += view.count
    usual = counts == {config.data.image_size: 2}
    views = ", ".join(f"{'' if usual else _counted(n, 'view') + ' of '}{size} px" for size, n in counts.items())
    return (
        f"{config.method.name} on {len(source)} images of {source.name!r}: {config.network.encoder}, "
        f"{views}, {_counted(config.epochs, 'epoch')} of batch {config.batch_size}, seed {config.seed}; "
        f"{where}, {precision}, {processes} process{'es' if processes > 1 else ''}"
    )


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"


def prepare(
    config: RunConfig,
    *,
    source: Source,
    device: torch.device,
    display: Display,
    start: Mapping[str, Tensor] | None = None,
) -> PreTraining:
    """Builds everything that a run needs, without writing anything.

    Args:
        start: every tensor of the method before the first step, from ``training.start``; None: those of its
            initialisation or of a checkpoint.

    Raises:
        ConfigError: the parts do not fit together.
    """
    if config.start.reference and not config.start.tensors:
        raise ConfigError(
            f"start.reference={config.start.reference}: this command starts no training from weights; remove it."
        )
    _check_channels(source, config)
    source = choose_subset(source, config.data.subset, seed=config.seed)
    precision = devices.MixedPrecision.choose(config.precision, device)
    _prepare_torch(config, device)
    loader = TrainingBatches(
        source, config.data, config.views, batch_size=config.batch_size, seed=config.seed,
        rank=distributed.rank(), world_size=distributed.world_size(), device=device, dtype=precision.weights,
    )  # fmt: skip
    _check_frozen(config, loader.steps_per_epoch)
    method = build_method(config)
    if start is not None:
        method.load_state_dict(dict(start))
    batch_norm.synchronise_batch_norm(method, device.type)
    precision.place(method)
    if config.compile:
        compile_networks(method)
    _save_memory(method, config)
    settings = config.optimizer
    groups = method.parameter_groups()
    if settings.layer_decay < 1 or settings.frozen_epochs > 0:
        groups = layers.layerwise(groups, method.encoder, layer_decay=settings.layer_decay)
    optimizer = optim.build_optimizer(
        method, name=settings.name, momentum=settings.momentum, weight_decay=settings.weight_decay,
        groups=groups,
    )  # fmt: skip
    return PreTraining(
        config, method=method, optimizer=optimizer, loader=loader, source=source, precision=precision, display=display
    )


def build_method(config: RunConfig, *, weights: Mapping[str, Tensor] | None = None) -> Method:
    """The method of a run with freshly initialised networks, determined by the configuration.

    Args:
        weights: for the encoder, instead of its initialisation; a teacher is a copy of it.

    Raises:
        CheckpointError: the weights do not match.
        ConfigError: the encoder or the views do not meet the method's needs.
    """
    encoder, feature_dim = initialise_encoder(config)
    if weights is not None:
        load_strictly(encoder, weights, "The start")
    kind = find_method(config.method.name)
    check_tokens(kind, encoder, config)
    method = create_method(kind, config.method.name, encoder, feature_dim, config.method.options)
    method.seed = config.seed
    _check_views(method, config)
    return method


def compile_networks(method: Method, *, backend: str = "inductor") -> None:
    """Compiles encoder and projector, also a teacher's, at their first forward; tensor names do not change.

    Args:
        backend: of ``torch.compile``.
    """
    teacher = method.teacher.values() if isinstance(method, TeacherMethod) else ()
    for network in (method.encoder, getattr(method, "projector", None), *teacher):
        if isinstance(network, nn.Module):
            network.compile(backend=backend)


def _save_memory(method: Method, config: RunConfig) -> None:
    """Makes encoders compute a batch in parts or recompute blocks; ConfigError if that would change the step."""
    parts = f"batch_parts={config.batch_parts}"
    if config.compile and (config.batch_parts > 1 or config.recompute_blocks):
        saving = parts if config.batch_parts > 1 else "recompute_blocks=true"
        raise ConfigError(f"{saving} does not go together with compile=true: choose one of them.")
    encoder = f"network.encoder={config.network.encoder!r}"
    if config.recompute_blocks and not networks.recompute_blocks(method.encoder):
        raise ConfigError(
            f"recompute_blocks=true: {encoder} has no sequence of blocks of one kind. Remove it, or see batch_parts."
        )
    if config.batch_parts == 1:
        return
    if method.needs_tokens:
        raise ConfigError(f"{parts}: method.name={config.method.name!r} does not support it; use batch_parts=1.")
    if not config.optimizer.frozen_statistics and networks.mixes_rows(method.encoder):
        raise ConfigError(
            f"{parts}: {encoder} has BatchNorm, whose statistics of a part are not those of the batch. Use --set "
            f"recompute_blocks=true instead, with which they are, or --set optimizer.frozen_statistics=true as well."
        )
    for network in filter(None, (method.encoder, method.teacher_encoder())):
        networks.compute_in_parts(network, config.batch_parts)


def check_tokens(method: type[Method], encoder: nn.Module, config: RunConfig) -> None:
    """Raises ConfigError if a method needs an encoder with tokens and the run's encoder has none."""
    if method.needs_tokens and not networks.has_tokens(encoder):
        size = config.data.image_size
        patches = f" --set network.patch_size={max(1, size // 8)}" if size <= networks.SMALL_IMAGE else ""
        raise ConfigError(
            f"method.name={config.method.name!r} needs an encoder with tokens, and network.encoder="
            f"{config.network.encoder!r} has none: use --set network.encoder=timm/vit_tiny_patch16_224{patches}."
        )


def _check_views(method: Method, config: RunConfig) -> None:
    """Raises ConfigError if a method cannot take the number of views of a run, or its encoder their sizes."""
    count = sum(view.count for view in config.views)
    if count < method.least_views:
        raise ConfigError(
            f"method.name={config.method.name!r} needs {method.least_views} views of an image or more, the settings "
            f"have {count}: use --set views.0.count={method.least_views}."
        )
    try:
        inspect.signature(method.forward).bind(*range(count))
    except TypeError:
        taken = len(inspect.signature(method.forward).parameters)
        raise ConfigError(
            f"method.name={config.method.name!r} takes {taken} views of an image, the settings have {count}: "
            "change the counts of views, or write forward(self, *views)."
        ) from None
    training = method.encoder.training
    for size in sorted({view.image_size for view in config.views} - {0, config.data.image_size}):
        try:
            with torch.no_grad():
                method.encoder.eval()(torch.zeros(2, len(config.data.mean), size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"network.encoder={config.network.encoder!r} does not accept views of {size} pixels ({reason}): change "
                f"the image_size of the views."
            ) from error
    method.encoder.train(training)


def _check_frozen(config: RunConfig, steps_per_epoch: int) -> None:
    """Raises ConfigError if the encoder would never learn."""
    frozen, epochs = config.optimizer.frozen_epochs, config.epochs
    if frozen > 0 and round(frozen * steps_per_epoch) >= epochs * steps_per_epoch:
        raise ConfigError(
            f"optimizer.frozen_epochs={frozen:g} leaves none of the {epochs} epochs for the encoder, at "
            f"{_counted(steps_per_epoch, 'step')} an epoch: choose less, or more epochs."
        )


def _check_channels(source: Source, config: RunConfig) -> None:
    if source.channels != len(config.data.mean) and config.start.reference:
        raise ConfigError(
            f"{source.name!r} has {source.channels}-channel images, but the encoder of {config.start.reference} takes "
            f"{len(config.data.mean)}-channel images: choose different images or weights."
        )
    if source.channels != len(config.data.mean):
        raise ConfigError(
            f"{source.name!r} has {source.channels}-channel images, but recipe {config.recipe!r} is for "
            f"{len(config.data.mean)}-channel images (data.mean has one number per channel): choose a different recipe."
        )


def _prepare_torch(config: RunConfig, device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not config.deterministic
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
            torch.use_deterministic_algorithms(True)
