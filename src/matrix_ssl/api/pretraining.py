"""A complete pre-training: settings, data, run folder, training, page."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from matrix_ssl import config as configuration
from matrix_ssl import distributed, networks
from matrix_ssl.api.caller import undisturbed
from matrix_ssl.api.evaluation import open_images
from matrix_ssl.api.keywords import assign, listed, optional
from matrix_ssl.api.records import keep_own_parts, keep_views
from matrix_ssl.api.run import Run
from matrix_ssl.config import RunConfig, split_assignment
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data import Source
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.sources import Data, Splits, check_outside, describe
from matrix_ssl.encoder.where import PATH, RANDOM, TIMM, read_where
from matrix_ssl.errors import CheckpointError, ConfigError, RunFolderError
from matrix_ssl.evaluate.followed import followed
from matrix_ssl.evaluate.online import OnlineEvaluation
from matrix_ssl.evaluate.protocols import describe_images
from matrix_ssl.methods import Method, find_method, option_defaults, register_method
from matrix_ssl.runs.checkpoint import read_encoder
from matrix_ssl.runs.files import read_object
from matrix_ssl.runs.folder import CONFIG, EVALUATION, SKIPPED, SUMMARY, check_owner, has_begun, read_config
from matrix_ssl.runs.loggers import check_loggers
from matrix_ssl.runs.session import Session, session
from matrix_ssl.runs.signals import limited_time
from matrix_ssl.training import fitting, remarks, setup
from matrix_ssl.training.configure import DEFAULT_RECIPE, configure, run_folder
from matrix_ssl.training.measured import keeping_channels, with_statistics
from matrix_ssl.training.pretraining import PreTraining
from matrix_ssl.training.start import Start, start_from
from matrix_ssl.training.task import Line

T = TypeVar("T")


def pretrain(
    data: Any = None,
    *,
    recipe: str | None = None,
    start: str | Path | None = None,
    encoder: str | nn.Module | None = None,
    method: str | type[Method] | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    settings: Mapping[str, Any] | Iterable[str] = (),
    callback: Callable[[Line], object] | None = None,
    online: bool = False,
    information: bool = False,
    loggers: str | Collection[str] = (),
    report: bool = True,
    quiet: bool = False,
    max_hours: float | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    download: bool = False,
    **keywords: Any,
) -> Run:
    """Pre-trains an encoder without labels; repeating the call resumes the run, or returns it if it is finished.

    Any other keyword argument is a setting, given by its full name or by the last part of it if no other setting ends
    in the same one: ``epochs=50``, ``image_size=64``, ``hidden_dim=512``.

    Args:
        data: a folder, a packed file or the name of a dataset, or a list of them; an array of images (n, h, w),
            (n, h, w, 3) or (n, 3, h, w), uint8 or floating point in [0, 1], or a pair (images, labels); a map-style
            ``torch.utils.data.Dataset``; or a Hugging Face dataset. None: the recipe's dataset.
        recipe: a name listed by ``matrix-ssl recipes``; None: the starting weights, network, image size, batch size and
            number of epochs are chosen for the images and the machine.
        start: weights to train further, in any form that ``open`` accepts: ``"torchvision/resnet18"``, a run folder, a
            checkpoint file. They determine the architecture, image size and normalisation.
        encoder: an architecture such as ``"resnet50"``, newly initialised; or a module that maps images (n, c, s, s) to
            features (n, k), with its present weights; or weights, as for ``start``.
        method: a name listed by ``matrix-ssl methods``, a Python file, or a subclass of ``methods.Method``.
        out: the run folder; None: a folder in ``runs``, named after the recipe and the data.
        fresh: start over; an existing run is kept as NAME.1, NAME.2 and so on.
        settings: values by full setting names, ``{"views.0.blur": 0.5}``, or strings, ``"views.0.blur=0.5"``.
        callback: called with every new line of metrics, a dictionary. An exception that it raises ends the training
            after a checkpoint.
        online: also measure, during training, the accuracy on a held-out fifth of the labels, and MIR and HDR of its
            features and the rows of the classifier.
        information: also measure MIR and HDR of the outputs of the two branches.
        loggers: loggers that also receive the metrics: ``"csv"``, ``"tensorboard"``, ``"wandb"``, ``"mlflow"``.
        report: write the page of the run.
        quiet: show no messages and no progress.
        max_hours: number of hours after which training writes a checkpoint and stops with ``Interrupted``; repeating
            the call resumes it. None: no limit.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        data_root: the folder of named datasets; None: the environment variable MATRIX_SSL_DATA.
        download: let torchvision download a named dataset, and download published weights that are not in the local
            cache.

    Raises:
        MatrixSSLError: the data, a setting, the folder or the training is at fault.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint has been written.
    """
    if callback is not None and not callable(callback):
        raise ConfigError(f"callback={callback!r}: expected a function that takes a line of metrics.")
    data = optional(as_data, data)
    location = describe(data) if isinstance(data, Splits) else data
    name = method if isinstance(method, str) or method is None else register_method(method)
    assignments = assign(keywords, settings, _known(recipe or DEFAULT_RECIPE, name))
    start, architecture = _choose_encoder(start, encoder)
    assignments += [("network.encoder", architecture)] if architecture else []
    assignments += [("start.reference", start)] if start else []
    label = method.__name__ if isinstance(method, type) else method
    run = run_folder(recipe or DEFAULT_RECIPE, location, label, start) if out is None else expanded(out)
    config = configure(recipe, location, assignments, method=name, device=device, run=None if fresh else run)
    chosen = [split_assignment(one)[0] if isinstance(one, str) else one[0] for one in assignments]
    with undisturbed(), limited_time(max_hours):
        train(
            config, run, data=data, chosen=chosen, fit=recipe is None, callback=callback, fresh=fresh, online=online,
            information=information, loggers=listed(loggers), report=report, quiet=quiet, device=device,
            data_root=optional(expanded, data_root), download=download,
        )  # fmt: skip
    return Run(run, data=data)


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    run: Path
    source: Source  # the images that it was trained on
    is_main: bool  # whether this is the process that writes files and messages
    report: Path | None  # the page, if one was written


def train(
    config: RunConfig,
    run: Path,
    *,
    data: Data | None = None,
    chosen: Collection[str] = (),
    fit: bool = False,
    callback: Callable[[Line], object] | None = None,
    fresh: bool = False,
    online: bool = False,
    information: bool = False,
    loggers: Collection[str] = (),
    report: bool = True,
    quiet: bool = False,
    device: str = "auto",
    data_root: Path | None = None,
    download: bool = False,
) -> Trained:
    """Trains a run to its end, in every process of a launcher; calling it again resumes or finds the run complete.

    Args:
        config: the run, as returned by ``training.configure``.
        run: its folder.
        data: the images, if they are an in-memory object of this program.
        chosen: dotted keys of settings that stay as they are when ``start.reference`` names weights; otherwise the
            network, images and optimizer defaults follow from the weights.
        fit: choose start, network, image size, batch size and epochs for the images and the machine, except those in
            ``chosen``.
        callback, fresh, online, information, loggers, report, quiet, device, data_root, download: as for ``pretrain``;
            for images without labels the page includes a map and a gallery.

    Raises:
        Interrupted: a signal was received; a checkpoint has been written.
        MatrixSSLError: the data, the folder or the training is at fault.
    """
    check_loggers(loggers)
    if not (run / CONFIG).exists():
        check_outside(run, data or config.data.source, data_root=data_root)
    earlier = run if not fresh and has_begun(run) else None
    with session(device, quiet=quiet) as s:
        config = keeping_channels(config, data, chosen=chosen)
        _check_equal(config, {"fit": fit, "fresh": fresh, "online": online})
        images = data or config.data.source
        source = _main_first(
            s, partial(open_images, images, config.data, split="train", data_root=data_root, download=download)
        )
        for remark in source.remarks:
            s.display.say(remark)
        if online:
            source.labelled()  # before anything is measured
        plan = _complete(s, config, source, chosen=chosen, fit=fit, earlier=earlier, download=download)
        with distributed.together():
            tensors = plan.start.tensors if plan.start else None
            training = setup.prepare(plan.config, source=plan.source, device=s.device, display=s.display, start=tensors)
            training.callback, training.measures_information = callback, information
            _observe(training, run, plan.config, s.device, online=online)
        is_done = s.claim(run, lambda: plan.config, is_complete=lambda: _is_complete(run, s.display.say), fresh=fresh)
        if s.main:
            keep_own_parts(run, plan.config, s.display.say)
        if not is_done:
            for sentence in _beginning(plan, training, s.device):
                s.display.say(sentence)
            skipped = training.train(run, loggers=loggers)["skipped"]
            if skipped:
                s.display.say(
                    f"Images left out because they cannot be read: {skipped:,} of {len(training.source):,}. They are "
                    f"listed in {run / SKIPPED}."
                )
        if s.main:
            keep_views(run, plan.config, training.source)
        page = _write_page(s, run, plan.source) if s.main and report else None
        return Trained(run, plan.source, s.main, page)


@dataclass(frozen=True)
class _Plan:
    """A run whose settings are complete."""

    config: RunConfig
    source: Source
    start: Start | None  # weights to train further
    fitted: list[str] | None  # settings chosen for the images and the machine; None: they come from a recipe
    remark: str  # a warning about that choice; empty: none


def _check_equal(config: RunConfig, arguments: dict[str, bool]) -> None:
    """Raises if processes of a launcher differ in their settings, except the location of the images and the workers.

    Called before the processes look for the images: with different settings, they would then wait for each other.
    """
    values = dict(configuration.flatten(configuration.to_dict(config)))
    values = {key: value for key, value in values.items() if key not in ("data.source", "data.workers")}
    distributed.check_equal(values | arguments, "settings")


def _complete(
    s: Session, config: RunConfig, source: Source, *, chosen: Collection[str], fit: bool, earlier: Path | None,
    download: bool,
) -> _Plan:  # fmt: skip
    """Completes the settings that follow from the images, the machine and the starting weights, in this order."""
    fitted, remark, start = None, "", None
    if fit:
        config, fitted, remark = fitting.fitted(config, source, s.device, chosen=chosen, run=earlier, download=download)
        chosen = [*chosen, *fitted]
    config = setup.identify_data(config, source)
    if config.start.reference:
        start = _main_first(s, partial(start_from, config, chosen=chosen, run=earlier, download=download))
        config = start.config
    config, source = with_statistics(config, source, run=earlier, say=s.display.say)
    recorded = read_config(earlier).precision if earlier is not None else None
    settled = setup.settle_precision(config, s.device, recorded=recorded).precision
    settled = distributed.broadcast_object(settled)  # processes may have different processors
    config = configuration.override(config, [("precision", settled)])
    return _Plan(config, source, start, fitted, remark)


def _observe(training: PreTraining, run: Path, config: RunConfig, device: torch.device, *, online: bool) -> None:
    """Makes a training follow the neighbours of a few images for its page and, if requested, measure accuracy."""
    seen = training.plan.total_steps * config.batch_size
    if near := followed(run, config, training.source, device=device, seen=seen):
        training.follow = near.see
    if online:
        training.observer = OnlineEvaluation(training.source, config.data, device=device)


def _beginning(plan: _Plan, training: PreTraining, device: torch.device) -> Iterator[str]:
    """What the user should know before the first step."""
    if plan.start:
        yield plan.start.text
    if plan.fitted is not None:
        yield fitting.describe(plan.config, plan.fitted, fitting.expected_seconds(plan.config, device))
    if plan.remark:
        yield plan.remark
    yield from remarks.on_settings(plan.config, training.method.encoder, images=len(training.source))
    if distributed.is_main():  # the others would read the images only to say nothing
        yield from remarks.on_copies(training.source)
    yield setup.headline(plan.config, training.source, device)


def _write_page(s: Session, run: Path, source: Source) -> Path:
    """The page of the run, with a map and a gallery if the images have no labels; else ``evaluate`` makes these."""
    from matrix_ssl.report import write_report  # takes a second to import

    if source.labels is None and not (run / EVALUATION).exists():
        with s.display.bar("features") as show:
            describe_images(
                run, source, weights="student", device=s.device, on_progress=show, say=s.display.say,
                max_unreadable=1.0,  # the training has accepted the loss
            )  # fmt: skip
    return write_report(run)


def _known(recipe: str, method: str | None) -> list[str]:
    """The names of all settings of a recipe with a method."""
    config = find_recipe(recipe)
    plain = [key for key, _ in configuration.flatten(configuration.to_dict(config)) if not key.startswith("method.")]
    options = option_defaults(find_method(method or config.method.name))
    return [*plain, "method.name", *(f"method.{option}" for option in options)]


def _choose_encoder(start: str | Path | None, encoder: str | nn.Module | None) -> tuple[str | None, str | None]:
    """WHERE the run's starting weights are, and its architecture; None: not chosen."""
    reference = None if start is None else _reference(start)
    if isinstance(encoder, nn.Module):
        if start is not None:
            raise ConfigError("start= and a module as encoder= are both weights to start from: remove one.")
        return None, networks.register_encoder(encoder)
    if encoder is None:
        return reference, None
    place = read_where(encoder)
    if place.kind == TIMM or (place.kind == PATH and not place.path.exists()):  # the name of an architecture
        return reference, encoder
    if place.kind == RANDOM:
        return reference, place.name
    if start is not None:
        raise ConfigError(f"start={start} and encoder={encoder} are both weights to start from: remove one.")
    return encoder, None


def _reference(where: str | Path) -> str:
    """WHERE as text; a ``Path`` is always a path."""
    if isinstance(where, Path) and read_where(str(where)).kind != PATH:
        return f".{os.sep}{where}"
    return str(where)


def _main_first(s: Session, function: Callable[[], T]) -> T:
    """The value of a function in every process; the main process runs it first, since it may download."""
    values: list[T] = []
    for turn in (True, False):
        with distributed.together():
            if s.main == turn:
                values.append(function())
    return values[0]


def _is_complete(run: Path, say: Callable[[str], None]) -> bool:
    """Whether a run has its last file and an intact encoder."""
    if not (run / SUMMARY).exists():
        return False
    try:
        check_owner(run / SUMMARY, read_object(run / SUMMARY).get("run"), run)
        read_encoder(run)
    except (CheckpointError, RunFolderError) as error:
        say(f"Warning: {error} It is written again from the last checkpoint.")
        return False
    return True
