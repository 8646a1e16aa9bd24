"""A whole pre-training: data, run folder, training, page."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from matrix_ssl import distributed
from matrix_ssl.config import RunConfig
from matrix_ssl.data import Source, open_source
from matrix_ssl.errors import CheckpointError
from matrix_ssl.evaluate.online import OnlineEvaluation
from matrix_ssl.evaluate.protocols import describe_images
from matrix_ssl.report import write_report
from matrix_ssl.runs.checkpoint import read_safetensors
from matrix_ssl.runs.folder import ENCODER, EVALUATION, SUMMARY
from matrix_ssl.runs.metrics import check_tensorboard
from matrix_ssl.runs.session import session
from matrix_ssl.training import setup
from matrix_ssl.training.start import Start, start_from


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    run: Path
    source: Source  # the images that it was trained on
    is_main: bool  # whether this process is the one that writes files and messages
    report: Path | None  # the page, where one was written


def train(
    config: RunConfig,
    run: Path,
    *,
    chosen: Collection[str] = (),
    fresh: bool = False,
    online: bool = False,
    tensorboard: bool = False,
    report: bool = True,
    device: str = "auto",
    data_root: Path | None = None,
    download: bool = False,
) -> Trained:  # fmt: skip
    """Trains a run to its end, in all processes of a launcher; the same call again resumes or finds it complete.

    Args:
        config: the run, as ``training.configure`` gives it.
        run: its folder.
        chosen: dotted keys of settings that stay as they are where ``start.reference`` names weights; network, images
            and defaults of the optimizer follow from those otherwise.
        fresh: set aside a run that is in the folder.
        online: measure accuracy during training, on a held-out fifth of the labels.
        tensorboard: write TensorBoard events into the folder.
        report: write the page, and for images without labels the map and the gallery in it.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        data_root: the folder of named datasets.
        download: let torchvision fetch a named dataset, and fetch published weights that the local cache lacks.

    Raises:
        Interrupted: a signal came; a checkpoint has been written.
        MatrixSSLError: the data, the folder or the training is at fault.
    """
    if tensorboard:
        check_tensorboard()
    with session(device) as s:
        for turn in (True, False):  # the main process first: it may download
            with distributed.together():
                if s.main == turn:
                    source = open_source(config.data.source, split="train", data_root=data_root, download=download)
        config = setup.identify_data(config, source)
        start: Start | None = None
        if config.start.reference:
            for turn in (True, False):
                with distributed.together():
                    if s.main == turn:
                        start = start_from(config, chosen=chosen, run=None if fresh else run, download=download)
            assert start is not None  # every process has its turn
            config = start.config
        with distributed.together():
            tensors = start.tensors if start else None
            training = setup.prepare(config, source=source, device=s.device, display=s.display, start=tensors)
            if online:
                training.observer = OnlineEvaluation(training.source, config.data, device=s.device)
        if not s.claim(run, lambda: config, is_complete=lambda: _is_complete(run, s.display.say), fresh=fresh):
            if start:
                s.display.say(start.text)
            s.display.say(setup.headline(config, training.source, s.device))
            training.train(run, run / "tensorboard" if tensorboard else None)
        page = None
        if s.main and report:
            if source.labels is None and not (run / EVALUATION).exists():
                with s.display.bar("features") as show:
                    describe_images(run, source, weights="student", device=s.device, on_progress=show)
            page = write_report(run)
        return Trained(run, source, s.main, page)


def _is_complete(run: Path, say: Callable[[str], None]) -> bool:
    """Whether a run has its last file and a whole encoder."""
    if not (run / SUMMARY).exists():
        return False
    try:
        read_safetensors(run / ENCODER)
    except CheckpointError as error:
        say(f"Warning: {error} It is written again from the last checkpoint.")
        return False
    return True
