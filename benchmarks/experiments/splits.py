"""Images that no choice has seen: packed copies of parts of the datasets, for a comparison on equal terms.

    python -m benchmarks.experiments.splits --data-root DATA --out FOLDER

DATA holds the packed copies of CIFAR-10 (``cifar10/cifar10_jpeg_train.npz``) and of Imagenette
(``imagenette128/imagenette128_train_0.npz`` to ``_2``, ``imagenette128_val.npz``). Writes ``train.npz`` and
``test.npz`` into ``FOLDER/cifar10_unseen``, ``FOLDER/cifar10_fresh`` and ``FOLDER/imagenette_unseen``, for
``matrix-ssl compare --data``. All experiments before took the first images of one random order, that of seed 0:
10,000 of CIFAR-10, 5,000 of Imagenette.

``benchmarks/results/splits.json`` has the rule and the SHA-256 of files, places and content. Where it exists the parts
must agree with it, and nothing is written otherwise.
"""

import argparse
import hashlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.harness import RESULTS
from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import DataError
from matrix_ssl.runs.files import read_json, write_json

ORDER = 0  # seed of the random order from which all experiments took the first images


class Part(NamedTuple):
    """Images of packed files: those from ``start`` to ``stop`` of the random order, kept in the order of the files."""

    files: tuple[str, ...]
    start: int = 0
    stop: int | None = None
    shuffled: bool = True


_IMAGENETTE = tuple(f"imagenette128/imagenette128_train_{i}.npz" for i in range(3))
PARTS = {
    "cifar10_unseen/train": Part(("cifar10/cifar10_jpeg_train.npz",), 10_000, 30_000),
    "cifar10_unseen/test": Part(("cifar10/cifar10_jpeg_train.npz",), 30_000, 40_000),
    "cifar10_fresh/train": Part(("cifar10/cifar10_jpeg_train.npz",), 20_000, 30_000),
    "cifar10_fresh/test": Part(("cifar10/cifar10_jpeg_train.npz",), 40_000, 50_000),
    "imagenette_unseen/train": Part(_IMAGENETTE, 5_000),
    "imagenette_unseen/test": Part(("imagenette128/imagenette128_val.npz",), shuffled=False),
}
RULE = (
    "permutation(n, 0) of matrix_ssl.data.randomness orders the n training images. CIFAR-10: places 10,000 to 29,999 "
    "train, 30,000 to 39,999 test, both from the training images of the dataset; a second test at 24 epochs trains on "
    "places 20,000 to 29,999 and tests on 40,000 to 49,999. Imagenette: places from 5,000 on "
    "train, the whole validation split tests. Within a part images are in the order of the files."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--record", type=Path, default=RESULTS / "splits.json")
    arguments = parser.parse_args()
    packed = {name: pack(arguments.data_root, part) for name, part in PARTS.items()}
    record = {"rule": RULE, "parts": {name: described for name, (_, described) in packed.items()}}
    if arguments.record.exists():
        check(record, read_json(arguments.record), arguments.record)
    for name, (arrays, _) in packed.items():
        path = arguments.out / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
        Console().print(f"written: {path}, {len(arrays['y'])} images", markup=False)
    write_json(arguments.record, record)


def places(part: Part, count: int) -> NDArray[np.int64]:
    """Which of ``count`` images a part has, ascending."""
    if not part.shuffled:
        return np.arange(count)
    return np.sort(permutation(count, ORDER)[part.start : part.stop])


def pack(root: Path, part: Part) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a packed file, and what the record says of them."""
    images, labels, extra, sources = [], [], {}, {}
    for name in part.files:
        sources[name] = hashlib.sha256((root / name).read_bytes()).hexdigest()
        with np.load(root / name, allow_pickle=False) as file:
            content, offsets = file["jpeg"].tobytes(), file["offs"]
            images += [content[a:b] for a, b in itertools.pairwise(offsets)]
            labels.append(file["y"])
            extra = {key: file[key] for key in ("classes",) if key in file.files}
    chosen = places(part, len(images))
    kept, y = [images[i] for i in chosen], np.concatenate(labels)[chosen]
    offsets = np.cumsum([0, *map(len, kept)], dtype=np.int64)
    arrays = {"jpeg": np.frombuffer(b"".join(kept), np.uint8), "offs": offsets, "y": y, **extra}
    described = {
        "files": sources,
        "images": len(kept),
        "of_each_class": np.bincount(y).tolist(),
        "places_sha256": hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest(),
        "content_sha256": hashlib.sha256(b"".join(kept) + y.astype("<i8").tobytes()).hexdigest(),
    }
    return arrays, described


def check(found: dict[str, Any], record: dict[str, Any], path: Path) -> None:
    """Raises DataError where the parts are not those of the record."""
    different = [name for name in found["parts"] if found["parts"][name] != record["parts"].get(name)]
    if different or found["rule"] != record["rule"]:
        raise DataError(f"{path}: {', '.join(different) or 'the rule'} differs; use the files that it names.")


if __name__ == "__main__":
    main()
