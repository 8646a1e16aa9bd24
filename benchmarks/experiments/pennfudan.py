"""The Penn-Fudan pedestrians in the format of COCO, for ``matrix-ssl detect``.

    python -m benchmarks.experiments.pennfudan --data FILE.tar --out FOLDER

FILE.tar holds ``images/NAME.jpg`` and ``masks/NAME.png``, in which 0 is the background and 1, 2, ... are pedestrians.
Writes ``FOLDER/images``, ``train.json`` and ``val.json``: 120 and the other 50 images of a random order, that of seed 0
of ``matrix_ssl.data.randomness``. Masks are run lengths, boxes those of the masks.

Reference: Wang, Shi, Song and Shen, "Object Detection Combining Recognition and Segmentation", ACCV 2007.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import DataError
from matrix_ssl.runs.files import write_atomically, write_text

TRAINING = 120  # of 170 images
ORDER = 0  # seed
CATEGORIES = [{"id": 1, "name": "pedestrian"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for split, content in convert(arguments.data, arguments.out).items():
        counts = f"{len(content['images'])} images, {len(content['annotations'])} pedestrians"
        Console().print(f"written: {arguments.out / split}.json, {counts}", markup=False)


def convert(file: Path, out: Path, *, training: int = TRAINING) -> dict[str, dict[str, Any]]:
    """Writes images and annotations; returns the annotations of ``train`` and ``val``.

    Raises:
        DataError: the file is no such archive, an image has no mask, or their sizes differ.
    """
    try:
        with tarfile.open(file) as archive:
            content = {m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}  # type: ignore[union-attr]
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{file} cannot be read as a tar file ({error}).") from error
    names = sorted(PurePosixPath(name).stem for name in content if name.startswith("images/"))
    if len(names) <= training:
        raise DataError(f"{file}: expected more than {training} files images/NAME.jpg, it has {len(names)}.")
    (out / "images").mkdir(parents=True, exist_ok=True)
    order = permutation(len(names), ORDER)
    results: dict[str, dict[str, Any]] = {}
    for split, chosen in (("train", order[:training]), ("val", order[training:])):
        result: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
        for index in sorted(chosen.tolist()):
            name = names[index]
            image, mask = content[f"images/{name}.jpg"], content.get(f"masks/{name}.png")
            if mask is None:
                raise DataError(f"{file}: masks/{name}.png is missing.")
            labels = np.asarray(Image.open(io.BytesIO(mask)))
            width, height = Image.open(io.BytesIO(image)).size
            if labels.shape != (height, width):
                raise DataError(f"{file}: {name} has {width} by {height} pixels, its mask has another size.")
            result["images"].append({"id": index + 1, "file_name": f"{name}.jpg", "width": width, "height": height})
            for label in np.unique(labels[labels > 0]):
                number = len(result["annotations"]) + 1
                result["annotations"].append(annotation(labels == label) | {"id": number, "image_id": index + 1})
            write_atomically(out / "images" / f"{name}.jpg", lambda stream, image=image: stream.write(image))
        write_text(out / f"{split}.json", json.dumps(result, separators=(",", ":")))
        results[split] = result
    return results


def annotation(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Category, box, area and run lengths of a mask (h, w) with a pixel at least."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    return {"category_id": 1, "iscrowd": 0, "area": int(mask.sum()), "bbox": box,
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)}}  # fmt: skip


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's counts of a mask: lengths of runs of zeros and ones in turn, column by column, zeros first."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *changes.tolist(), mask.size]).tolist()


if __name__ == "__main__":
    main()
