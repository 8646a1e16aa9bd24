"""Whose training a folder holds, so that a checkpoint is never taken for that of another encoder or other images."""

import dataclasses
from pathlib import Path

from matrix_ssl import distributed
from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.evaluate.trained.classifier import Classifier, Settings
from matrix_ssl.runs import folder as folders
from matrix_ssl.runs.checkpoint import digest
from matrix_ssl.runs.files import cannot_write

TRAINING = "training.json"


def claim(
    folder: Path, source: Source, data: DataConfig, *, settings: Settings, seed: int, classifier: Classifier
) -> None:
    """Makes the folder and writes what is trained in it, or checks that it is the same; on the main process.

    Images count as the same by their content, wherever their folder lies.

    Raises:
        RunFolderError: it holds another training, or it cannot be written.
    """
    if not distributed.is_main():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    description = {
        "settings": dataclasses.asdict(settings) | {"rates": [group["rate"] for group in classifier.groups]},
        "seed": seed,
        "images": {"classes": source.classes, "digest": source.digest},
        "data": {name: getattr(data, name) for name in ("image_size", "mean", "std")},
        "weights": {part: digest(getattr(classifier, part).state_dict()) for part in ("frozen", "learner")},
    }
    folders.claim(folder, description, first=TRAINING)
