"""The nearest neighbours of a few fixed images at several points in training, for the page of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matrix_ssl.config import RunConfig
from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.data.base import Source
from matrix_ssl.data.files.pixels import viewable
from matrix_ssl.data.randomness import permutation
from matrix_ssl.evaluate.features import extract
from matrix_ssl.evaluate.map import nearest_neighbours, same_canvas, thumbnail
from matrix_ssl.runs.files import write_atomically
from matrix_ssl.runs.folder import FOLLOWED, identity

_STREAM = 0xF0110  # random stream that samples the images
_QUERIES, _NEIGHBOURS, _SIDE = 4, 5, 48
_MOST, _LEAST = 300, 50  # number of images searched for neighbours, at most and at least
_SHARE = 200  # images that a training sees for each image searched


class Followed:
    """Writes ``followed.npz`` into a run: the neighbours of four images among at most 300 of its dataset.

    The file holds ``step`` int64 (m,), ``query`` uint8 (q, h, w, c), ``query_where`` str (q,), ``neighbours`` uint8
    (m, q, k, h, w, c) and ``neighbours_where`` str (m, q, k). The queries are the first of the randomly sampled images.
    """

    def __init__(self, run: Path, config: RunConfig, source: Source, *, device: torch.device, images: int):
        chosen = permutation(len(source), _STREAM)[:images]
        self._run, self._source, self._data, self._device = run, source.subset(chosen), config.data, device

    def see(self, encoder: nn.Module, step: int) -> None:
        """Adds the neighbours after a step; entries of later steps, from before a training was resumed, are dropped.

        Raises:
            MatrixSSLError: no image can be read, or the file cannot be written.
        """
        features = extract({"": encoder}, self._source, self._data, device=self._device)
        queries = torch.arange(min(_QUERIES, len(features.indices) - 1))
        k = min(_NEIGHBOURS, len(features.indices) - 1)
        indices, _ = nearest_neighbours(features.vectors[""], queries, k=k)
        rows = features.indices[torch.cat([queries[:, None], indices.cpu()], dim=1).numpy()]  # (q, 1 + k)
        small = [thumbnail(viewable(self._source.read(int(i))), _SIDE) for i in rows.flatten()]
        images = same_canvas(small).permute(0, 2, 3, 1).unflatten(0, rows.shape).numpy()
        where = np.array([[self._source.where(int(i)) for i in row] for row in rows])
        new = {"step": np.array([step]), "neighbours": images[None, :, 1:], "neighbours_where": where[None, :, 1:]}
        queries_now = images[:, 0]
        if earlier := self._earlier(step, like=new):
            height, width = np.maximum(earlier["neighbours"].shape[3:5], images.shape[2:4])
            queries_now, *near = (
                _on_canvas(one, height, width) for one in (queries_now, earlier["neighbours"], new["neighbours"])
            )
            new = {name: np.concatenate([earlier[name], new[name]]) for name in ("step", "neighbours_where")}
            new["neighbours"] = np.concatenate(near)
        arrays: dict[str, Any] = {
            **new, "query": queries_now, "query_where": where[:, 0], "run": np.array(identity(self._run)),
        }  # fmt: skip
        write_atomically(self._run / FOLLOWED, lambda file: np.savez_compressed(file, **arrays))

    def _earlier(self, step: int, *, like: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The file's entries of earlier steps; empty if it is missing, damaged or from a different run.

        The sizes of its thumbnails may differ from those in ``like``.
        """
        try:
            arrays = read_arrays(self._run / FOLLOWED) if (self._run / FOLLOWED).is_file() else {}
            if not arrays or str(arrays["run"]) != identity(self._run):
                return {}
            for name, one in like.items():
                fits = arrays[name].ndim == one.ndim and arrays[name].dtype.kind == one.dtype.kind
                if not fits or arrays[name].shape[1:3] + arrays[name].shape[5:] != one.shape[1:3] + one.shape[5:]:
                    return {}
            kept = arrays["step"] < step
            return {name: arrays[name][kept] for name in like}
        except (OSError, ValueError, KeyError, IndexError):
            return {}


def _on_canvas(images: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Centres images (..., h, w, c) on a white canvas of the given size; larger dimensions stay as they are."""
    missing = [max(0, size - now) for size, now in zip((height, width), images.shape[-3:-1], strict=True)]
    margins = [(gap // 2, gap - gap // 2) for gap in missing]
    return np.pad(images, [(0, 0)] * (images.ndim - 3) + margins + [(0, 0)], constant_values=255)


def followed(run: Path, config: RunConfig, source: Source, *, device: torch.device, seen: int) -> Followed | None:
    """The neighbours to follow in a training that sees ``seen`` images; None if the cost would be noticeable.

    A look costs one forward pass of its images; six looks are less than a thirtieth of the training's forward passes.
    """
    images = min(_MOST, len(source), seen // _SHARE)
    return Followed(run, config, source, device=device, images=images) if images >= _LEAST else None
