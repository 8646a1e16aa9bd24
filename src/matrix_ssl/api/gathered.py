"""Images together with their features, computed once and kept or read from a file, and looked up by path."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import nn

from matrix_ssl.api import evaluation
from matrix_ssl.api.keywords import optional
from matrix_ssl.api.questions import Places, query_images
from matrix_ssl.api.run import Run
from matrix_ssl.config import DataConfig
from matrix_ssl.config.untrusted import expanded, is_file, is_there
from matrix_ssl.data.base import Source, evenly
from matrix_ssl.data.files.images import read_image
from matrix_ssl.data.files.pixels import viewable
from matrix_ssl.data.kinds.folder import FolderSource
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.sources import Data, Split, Splits, absolute, check_outside
from matrix_ssl.data.unreadable import skipped
from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.identity import encoder_digest
from matrix_ssl.encoder.where import absolute as absolute_where
from matrix_ssl.encoder.where import check_where, is_folder, read_where
from matrix_ssl.errors import ConfigError, DataError, check_known
from matrix_ssl.evaluate.embedding_files import ENDINGS, SELF_DESCRIBING, check_format, read_embedding
from matrix_ssl.evaluate.feature_rows import KEY
from matrix_ssl.evaluate.features import Embedding
from matrix_ssl.report.formats import common_folder
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import features_cache, fingerprint, in_features_cache
from matrix_ssl.runs.folder import CONFIG, check_output, read_config

Check = Callable[[Data, Source], None]
_SIDE = 160  # longest side of a thumbnail, in pixels
_LOOKED_AT = 20  # images that are compared with the digests in a feature file


class Gathered:
    """Images and their features, computed once and kept.

    Args:
        where: an encoder in any form that ``open`` accepts, or a feature file that ``embed`` or another program wrote.
        data: the images, as for ``pretrain``; None: those of the run. With a feature file, they are needed only for
            thumbnails, and only if the file does not record where the images are or they have been moved since; the
            new paths are then used.
        features: the file that keeps the encoder's features, written if it does not exist; None: a cache.
        split: ``train`` (the whole dataset if it has no test split) or ``test``.
        weights: ``student``, or ``teacher``, its moving average.
        device, quiet, data_root, download: as for ``pretrain``.
        check: called with the location of the images and the images themselves before their features are computed; an
            exception that it raises aborts everything. It is not called for a feature file.

    Attributes:
        embedding: the features, with the path and the label of every image.
        data: the images; None if they are not known.

    Raises:
        MatrixSSLError: the encoder, the images or the file is at fault.
    """

    def __init__(
        self, where: str | Path, data: Any = None, *, features: str | Path | None = None, split: Split = "train",
        weights: Weights = "student", device: str = "auto", quiet: bool = False, data_root: str | Path | None = None,
        download: bool = False, check: Check | None = None,
    ):  # fmt: skip
        check_where(where)
        check_known("split", split, get_args(Split))
        check_known("weights", weights, get_args(Weights))
        devices.choose_device(device)
        self._where, self._weights, self._device, self._quiet, self._split = where, weights, device, quiet, split
        self._data_root, self._download = optional(expanded, data_root), download
        self.data = optional(as_data, data)
        self._images: Source | None = None
        if is_features(where):
            if features is not None:
                raise ConfigError(f"{where} is a feature file: remove --features {features}.")
            self.embedding = read_embedding(expanded(where))
            if self.data is not None:
                self.embedding = replace(self.embedding, paths=self._paths_now())
        else:
            run = Run(where, download=download)
            self.data = self.data or run.config.data.source or None
            if self.data is None:
                raise evaluation.no_dataset(where)
            self._images = self._open(run.config.data)
            if check is not None:
                check(self.data, self._images)
            self.embedding = self._of_encoder(run, optional(expanded, features))
        if self.embedding.features.ndim != 2:
            raise DataError(f"{where} holds the features of patches: compute those of whole images.")
        for line in skipped(self.embedding.unreadable):
            Display(quiet=quiet).say(line)

    def __len__(self) -> int:
        return len(self.embedding)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._where)!r}: {self.embedding!r})"

    @property
    def encoder(self) -> str:
        """A short name of the encoder, or of the feature file if that does not say which encoder it is from."""
        return read_where(self.embedding.encoder or str(self._where)).label

    def source(self) -> Source:
        """The images themselves, in the order of the features.

        Raises:
            DataError: some are no longer where they were, or their location is not known.
        """
        paths = self.embedding.paths
        if self.data is None:
            missing = next((path for path in paths if not is_file(path)), "")
            if missing:
                raise DataError(f"{missing} is not here: name the images of {self._where} with --data.")
            name, labels, classes = Path(paths[0]).parent.name, self.embedding.labels, self.embedding.classes
            source: Source = FolderSource(name, Path(), paths, labels=labels, classes=classes)
            return self._unchanged(source.with_reading(self._config.reading))
        source, found = self._located
        if -1 in found:
            missing = paths[found.index(-1)]
            raise DataError(f"{missing} of {self._where} is not among the images of {source.name!r}: name its --data.")
        return self._unchanged(source.subset(found))

    def _paths_now(self) -> list[str]:
        """The paths of a feature file's images, with the dataset's current paths for images that have been moved."""
        source, found = self._located
        pairs = zip(self.embedding.paths, found, strict=True)
        places = [path if index < 0 else source.where(index) for path, index in pairs]
        return [
            path if Path(path).absolute() == Path(place).absolute() else place
            for path, place in zip(self.embedding.paths, places, strict=True)
        ]

    def _unchanged(self, source: Source) -> Source:
        """Returns the images; DataError if one of a sample has changed since its features were computed."""
        digests = self.embedding.digests or ()
        for row in evenly(len(digests), _LOOKED_AT).tolist():
            content = source.encoded(row)  # None for pixels: they may have been read in a different way
            if content is not None and digests[row] not in ("", hashlib.sha256(content).hexdigest()):
                raise DataError(
                    f"{source.where(row)} has changed since {self._where} was written: compute the features again."
                )
        return source

    @cached_property
    def _places(self) -> Places:
        return Places(self.embedding.paths)

    @cached_property
    def _config(self) -> DataConfig:
        """How the encoder of a feature file reads images, if it is a run that is still there; else as colours."""
        where = self.embedding.encoder
        folder = read_where(where).path if where and is_folder(where) else None
        return DataConfig() if folder is None or not is_there(folder / CONFIG) else read_config(folder).data

    @cached_property
    def _located(self) -> tuple[Source, list[int]]:
        """The dataset, and for every image of the features its index in the dataset, -1 if it is not there."""
        source = self._open(self._config) if self._images is None else self._images
        paths, places = self.embedding.paths, [source.where(index) for index in range(len(source))]
        whole = {str(Path(place).absolute()): index for index, place in enumerate(places)}
        found = [whole.get(str(Path(path).absolute()), -1) for path in paths]
        digest = self.embedding.digest
        if digest and -1 in found and digest == source.digest:
            found = _elsewhere(paths, places) or found
        return source, found

    def _open(self, images: DataConfig) -> Source:
        assert self.data is not None
        return evaluation.open_images(
            self.data, images, split=self._split, data_root=self._data_root, download=self._download
        )

    def _of_encoder(self, run: Run, file: Path | None) -> Embedding:
        """The encoder's features of the images: read from the file, or computed and kept in it or in the cache."""
        encoder, images = run.encoder(weights=self._weights), run.config.data
        assert self.data is not None and self._images is not None
        identity = encoder_digest(encoder, images)
        if file is not None:
            check_format(file)
            if file.suffix.lower() not in SELF_DESCRIBING:
                raise ConfigError(
                    f"--features {file}: such a file does not say which encoder and images its features are of; name "
                    f"one that ends in {', '.join(SELF_DESCRIBING)}."
                )
            if file.exists():
                return self._checked(read_embedding(file), file, identity)
            check_outside(file, self.data, data_root=self._data_root)
            check_output(file, self._where)
        keep = None
        if not isinstance(self.data, Splits):
            keep = features_cache() / fingerprint(identity, absolute(self.data), self._split)
        with in_features_cache():
            embedding = evaluation.embed_source(
                encoder, images, self._images, device=self._device, quiet=self._quiet, keep=keep,
                digests=file is not None,
            )  # fmt: skip
        embedding = replace(embedding, encoder=absolute_where(str(self._where)))
        if file is not None:
            embedding.save(file)
        return embedding

    def _checked(self, embedding: Embedding, file: Path, identity: str) -> Embedding:
        if embedding.encoder_digest != identity:
            raise DataError(f"{file} holds features of a different encoder than {self._where}: name another file.")
        assert self._images is not None
        if embedding.digest != self._images.digest:
            raise DataError(f"{file} holds features of other images than {self._images.name!r}: name another file.")
        return embedding

    def check_outside(self, path: Path) -> None:
        """Raises DataError for an output among the images, including those whose paths a feature file records."""
        check_outside(path, self.data or (), data_root=self._data_root)
        places = self.embedding.paths
        folders = {Path(place).parent for place in places} if self.data is None and is_file(places[0]) else set()
        if len(folders) > 1 and self.embedding.classes is not None:
            folders |= {folder.parent for folder in folders}  # the parents of class folders
        for folder in folders:
            check_outside(path, str(folder))

    def row(self, query: str | Path | int) -> int | None:
        """The row of the image that a query names; None for files outside the dataset."""
        return self._places.row(query)

    def embed(self, path: Path) -> Embedding:
        """The features of a file, or of the images in a folder, computed by the collection's encoder."""
        encoder, images = self._encoder
        source = query_images(expanded(path), images.reading)
        return evaluation.embed(encoder, images, as_data(source), device=self._device, quiet=True)

    def embed_image(self, image: Any) -> NDArray[np.float32]:
        """The features (1, k) of an image in memory, as ``encoder.preprocess`` takes it."""
        encoder, _ = self._encoder
        device = devices.choose_device(self._device)
        with torch.no_grad():
            pixels = encoder.preprocess([image]).to(device)  # type: ignore[operator]
            features: NDArray[np.float32] = encoder.eval().to(device)(pixels).float().cpu().numpy()
        return features

    @cached_property
    def _encoder(self) -> tuple[nn.Module, DataConfig]:
        """The encoder of the features, and how it reads images; DataError if it is not known or another one."""
        file = is_features(self._where)
        if file and not self.embedding.encoder:
            raise DataError(
                f"{self._where} does not say which encoder its features are of: query by one of its images, or name "
                f"the encoder in its place."
            )
        run = Run(self.embedding.encoder if file else self._where, download=self._download)
        encoder, images = run.encoder(weights=self._weights), run.config.data
        if self.embedding.encoder_digest not in ("", encoder_digest(encoder, images)):
            raise DataError(
                f"{self._where} holds features of a different encoder or block than {run.where}: query by one of its "
                f"images."
            )
        return encoder, images

    def thumbnail(self, place: str) -> bytes:
        """An image as a JPEG file, at most 160 pixels wide and high."""
        pixels = viewable(self._read(place))
        array = pixels.permute(1, 2, 0).numpy() if len(pixels) != 1 else pixels[0].numpy()
        image = Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        return buffer.getvalue()

    def _read(self, place: str) -> torch.Tensor:
        row = None if self.data is None else self.row(place)
        if row is not None:
            source, found = self._located
            if found[row] >= 0:
                return source.read(found[row])
        if not is_file(place):
            raise DataError(f"{place} is not here, so the page cannot show it: name its images with --data.")
        return read_image(Path(place), reading=self._config.reading)


def _elsewhere(paths: Sequence[str], places: Sequence[str]) -> list[int]:
    """The index of every path among the paths of the same dataset in another folder; empty if one is missing there."""
    start = len(common_folder(places))
    ends = {place[start:]: index for index, place in enumerate(places)}
    for end in (end for end in ends if paths[0].endswith(end)):
        folder = paths[0].removesuffix(end)
        if all(path.startswith(folder) and path[len(folder) :] in ends for path in paths):
            return [ends[path[len(folder) :]] for path in paths]
    return []


def check_outputs(
    paths: Sequence[Path], data: Data, *, data_root: Path | None, reads: Sequence[str | Path] = ()
) -> None:
    """Raises DataError for an output among the images; ``reads`` lists files and folders of further images."""
    folders = tuple(str(expanded(one)) for one in reads if is_there(expanded(one)))
    for path in paths:
        check_outside(path, data, data_root=data_root)
        check_outside(path, folders)


def is_features(where: str | Path) -> bool:
    """Whether WHERE is a feature file, not an encoder; for a safetensors file its tensors decide."""
    path = expanded(where)
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        return False
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return path.suffix.lower() != ".safetensors"
    try:
        with safe_open(path, framework="np") as file:
            return KEY in file.keys()  # noqa: SIM118, is no mapping
    except (OSError, SafetensorError):
        return False
