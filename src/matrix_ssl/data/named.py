"""Datasets known by name: digits, which comes with scikit-learn, and those that torchvision reads."""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from matrix_ssl.data.base import MemorySource, Places, as_labels
from matrix_ssl.errors import DataError

TORCHVISION_SETS = ("cifar10", "cifar100", "stl10", "stl10-unlabeled")
NAMED_SETS = ("digits", *TORCHVISION_SETS)
Split = Literal["train", "test"]

_DIGITS_TEST = 360


def open_digits(split: Split) -> MemorySource:
    """The 8x8 handwritten digits of scikit-learn, one channel, grey levels 0 to 16 scaled to 0 to 255.

    A fixed stratified split: 1437 images for training, 360 for testing.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = digits.target.astype(np.int64)
    classes = [str(digit) for digit in range(10)]
    places = Places.whole(["digits"], [len(labels)])
    everything = MemorySource("digits", images, places, labels=labels, classes=classes)
    rows = train_test_split(np.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=0)
    return everything.subset(np.sort(rows[("train", "test").index(split)]))


def open_torchvision(name: str, split: Split, *, folder: Path, download: bool) -> MemorySource:
    """A dataset in the layout that torchvision downloads.

    Its CIFAR files are pickles; torchvision opens them only after comparing their checksums with the published ones.

    Raises:
        DataError: the files are not in the folder or are damaged, or the download fails.
    """
    from torchvision import datasets

    try:
        with warnings.catch_warnings():  # the CIFAR files were written by a NumPy of Python 2
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            if name.startswith("cifar"):
                reader = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
                loaded = reader(folder, train=split == "train", download=download)
                pixels, targets = loaded.data.transpose(0, 3, 1, 2), loaded.targets  # from (n, h, w, c)
            else:
                labelled = name == "stl10"
                loaded = datasets.STL10(folder, split=split if labelled else "unlabeled", download=download)
                pixels, targets = loaded.data, loaded.labels if labelled else None  # (n, c, h, w)
    except (OSError, RuntimeError) as error:
        raise DataError(_absent(name, folder, download=download, error=error)) from None
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    places = Places.whole([f"{name}/{split}"], [len(images)])
    if targets is None:
        return MemorySource(name, images, places, labels=None, classes=None)
    labels, classes = as_labels(targets, loaded.classes, len(images), where=name)
    return MemorySource(name, images, places, labels=labels, classes=classes)


def _absent(name: str, folder: Path, *, download: bool, error: Exception) -> str:
    if download:
        return f"{name}: the download to {folder} failed ({error}); try again or copy the files there."
    return (
        f"{name} is not in {folder}, neither as a folder {name!r} of images or packed files nor as torchvision "
        f"downloads it; name the right folder (--data-root or MATRIX_SSL_DATA) or fetch it with --download."
    )
