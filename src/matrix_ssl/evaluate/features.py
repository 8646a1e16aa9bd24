"""Frozen features: one pass over the images for any number of encoders."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl.config import DataConfig
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import evaluation_batches
from matrix_ssl.data.views.augment import normalise
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.feature_files import ONLY, FeatureFiles, FeaturesInMemory

RAW_PIXELS_SIDE = 32  # raw pixels of larger images are averaged down to this side


@dataclass(frozen=True)
class Features:
    """The features of the readable images of a dataset."""

    vectors: dict[str, Tensor]  # by encoder: float32 (m, k), on the CPU
    indices: NDArray[np.int64]  # (m,), indices of the images in the dataset
    labels: Tensor  # int64 (m,); -1 for unlabelled images
    unreadable: list[tuple[str, str]]  # path, reason


class RawPixels(nn.Module):
    """The raw-pixel baseline: images (n, c, s, s) average-pooled to a side of at most 32 and flattened."""

    def forward(self, x: Tensor) -> Tensor:
        """The vectors (n, c · side · side)."""
        return F.adaptive_avg_pool2d(x, min(x.shape[-1], RAW_PIXELS_SIDE)).flatten(1)


def extract(
    encoders: Mapping[str, nn.Module],
    source: Source,
    data: DataConfig,
    *,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
    files: FeatureFiles | None = None,
    on_unreadable: Callable[[list[tuple[str, str]]], None] | None = None,
) -> Features:
    """Runs encoders in evaluation mode over the central squares of the images; unreadable ones are skipped and listed.

    Args:
        encoders: by name, modules that map images (n, c, s, s) to features (n, k).
        on_progress: called with (images done, number of images).
        files: files for the features, from which an earlier call is resumed; None: they are kept in memory.
        on_unreadable: called after every batch with all unreadable images so far (path, reason), if there are any. An
            exception that it raises ends the call.

    Raises:
        DataError: no image can be read.
        ConfigError: the images do not have the number of channels that the encoders take.
    """
    store = FeaturesInMemory() if files is None else files
    fill(store, encoders, source, data, device=device, on_progress=on_progress, on_unreadable=on_unreadable)
    if len(store.unreadable) == len(source):
        raise DataError(f"none of the {len(source)} images of {source.name!r} can be read.")
    store.save()
    indices, vectors = store.read()
    labels = np.full(len(indices), -1) if source.labels is None else source.labels[indices]
    tensors = {name: torch.from_numpy(rows) for name, rows in vectors.items()}
    return Features(tensors, indices, torch.from_numpy(labels), store.unreadable)


@torch.no_grad()
def fill(
    store: FeatureFiles | FeaturesInMemory,
    encoders: Mapping[str, nn.Module],
    source: Source,
    data: DataConfig,
    *,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
    on_unreadable: Callable[[list[tuple[str, str]]], None] | None = None,
) -> None:
    """Adds the features of all images that a store has not seen; as ``extract``, but perhaps no image is readable."""
    if source.channels != len(data.mean):
        raise ConfigError(
            f"{source.name!r} has {source.channels}-channel images, but the encoder was trained on "
            f"{len(data.mean)}-channel images."
        )
    for encoder in encoders.values():
        encoder.eval().to(device)
    start = store.seen
    rest = source if start == 0 else source.subset(np.arange(start, len(source)))
    for chosen, pixels, problems in evaluation_batches(rest, data, device=device) if len(rest) else ():
        vectors = {}
        if len(chosen):
            pixels = normalise(pixels, data.mean, data.std)
            vectors = {
                name: encoder(pixels.to(_dtype(encoder))).float().cpu().numpy() for name, encoder in encoders.items()
            }
        store.add(chosen + start, vectors, problems)
        if on_unreadable and store.unreadable:
            on_unreadable(store.unreadable)
        if on_progress:
            on_progress(store.seen, len(source))


def _dtype(encoder: nn.Module) -> torch.dtype:
    return next((p.dtype for p in encoder.parameters()), torch.float32)


@dataclass(frozen=True, eq=False)
class Embedding:
    """The features of the readable images of a dataset, with everything needed to use them."""

    features: NDArray[np.float32]  # (n, k); (n, patches, k) with a grid
    paths: list[str]  # n: files, or places such as ``packed.npz[12]``
    labels: NDArray[np.int64] | None  # (n,); None for unlabelled images
    classes: list[str] | None  # the name of every label
    digest: str  # of the dataset
    unreadable: list[tuple[str, str]]  # the images that were skipped: path, reason
    digests: list[str] | None = None  # n: SHA-256 of every file, or of the pixels of images without a file
    grid: tuple[int, int] | None = None  # rows and columns of the patches
    encoder: str = ""  # WHERE it is; empty if it is not known
    encoder_digest: str = ""  # SHA-256 of its weights

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        n, k = len(self), self.features.shape[-1]
        classes = f", {len(self.classes)} classes" if self.classes is not None else ""
        skipped = f", {len(self.unreadable)} unreadable" if self.unreadable else ""
        patches = f" in {self.grid[0]} x {self.grid[1]} patches" if self.grid else ""
        return f"Embedding({n} images, {k} features each{patches}{classes}{skipped})"

    def save(self, path: str | Path) -> None:
        """Writes a .npz, .npy, .csv, .parquet or .safetensors file; ``embedding_files`` describes the contents.

        Raises:
            RunFolderError: the file cannot be written.
            ConfigError: the file has a different ending.
        """
        from matrix_ssl.evaluate.embedding_files import write_embedding

        write_embedding(expanded(path), self)


def embed(
    encoder: nn.Module, source: Source, data: DataConfig, *, device: torch.device,
    on_progress: Callable[[int, int], None] | None = None, files: FeatureFiles | None = None,
) -> Embedding:  # fmt: skip
    """Computes the features of a dataset with one encoder; arguments and errors as for ``extract``."""
    digest = source.digest  # before images are read: features of an image that changes now are not those of the digest
    features = extract({ONLY: encoder}, source, data, device=device, on_progress=on_progress, files=files)
    vectors, grid = features.vectors[ONLY].numpy(), grid_of(encoder)
    if grid is not None:
        vectors = vectors.reshape(len(vectors), grid[0] * grid[1], -1)
    return Embedding(
        features=vectors,
        paths=[source.where(int(i)) for i in features.indices],
        labels=None if source.labels is None else features.labels.numpy(),
        classes=source.classes,
        digest=digest,
        unreadable=features.unreadable,
        grid=grid,
    )


def grid_of(encoder: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the patches whose features an encoder gives; None for an encoder of whole images."""
    grid: tuple[int, int] | None = getattr(encoder, "grid", None)
    return grid


def image_digest(source: Source, index: int) -> str:
    """SHA-256 of an image: of its file if there is one, else of the pixels. UnreadableImage if it cannot be read."""
    content = source.encoded(index)
    if content is None:
        pixels = source.read(index)
        content = f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()
