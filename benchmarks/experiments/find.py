"""What the questions to a folder of images find where the answers are planted.

    python -m benchmarks.experiments.find --data-root DATA --encoder WHERE --work FOLDER [--image-size 128]

DATA holds the packed copy of Imagenette (``imagenette128/imagenette128_train_0.npz`` to ``_2``,
``imagenette128_val.npz``). A fixed random order of the training images gives two parts that share no image: 1,000 for
the choice of thresholds and 4,500 for the measurements. WORK keeps the images and features, so that the same command
resumes.

- Duplicates: to the 4,500 images come 500 copies of some, 125 each re-encoded (JPEG of quality 30), resized (to 60 %),
  cropped (5 % of each side) and mirrored, in 5,000 images. A pair of image and copy is right; any other pair above the
  threshold counts as wrong, though a dataset may hold real duplicates of its own. Thresholds of the cosine similarity
  and of the perceptual hash (the package imagehash, phash of 64 bits) are those of the highest F1 on the first part,
  with copies of its own, where wrong pairs count as often as there are more pairs for a copy in the second part; beside
  them stands the default of ``near_duplicates``.
- Wrong labels: 5 % of the 4,500 labels are replaced by random others, five draws; how many of the first hundred that
  ``label_issues`` lists are replaced, and how many of all it lists.
- Subsets: of a random 80 % of the 4,500, five draws, each rule chooses a tenth; accuracy on 1,000 validation images of
  the linear probe that is trained on it with the penalty 1, beside a random tenth.

Imagenette is a part of ImageNet: an encoder that was trained on ImageNet has seen these images with their labels.
"""

import argparse
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.harness import command_line, save
from matrix_ssl.api import evaluation
from matrix_ssl.data import Source, open_source
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.randomness import permutation
from matrix_ssl.encoder.opening import Opened, open_encoder
from matrix_ssl.evaluate.explore.duplicates import THRESHOLD
from matrix_ssl.evaluate.explore.inputs import unit_rows
from matrix_ssl.evaluate.explore.mislabels import label_issues
from matrix_ssl.evaluate.explore.selection import RULES, select
from matrix_ssl.evaluate.probes.linear import fit_path

ORDER, COPIES, LABELS, SUBSETS = 0xF1, 0xC0, 0x1A, 0x5B  # coordinates of the random choices
DRAWS = 5
_SIZES = (1000, 120, 4500, 500)  # images and copies to choose thresholds on, and to measure on
WRONG, TENTH, POOL = 0.05, 0.1, 0.8
Pairs = set[tuple[int, int]]


def _encoded(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _resized(image: Image.Image) -> bytes:
    return _encoded(image.resize((round(0.6 * image.width), round(0.6 * image.height)), Image.Resampling.LANCZOS))


def _cropped(image: Image.Image) -> bytes:
    x, y = round(0.05 * image.width), round(0.05 * image.height)
    return _encoded(image.crop((x, y, image.width - x, image.height - y)))


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "re-encoded": lambda image: _encoded(image, 30),
    "resized": _resized,
    "cropped": _cropped,
    "mirrored": lambda image: _encoded(ImageOps.mirror(image)),
}


def plant(source: Source, rows: NDArray[np.int64], copies: int, folder: Path) -> tuple[list[Path], dict[str, Pairs]]:
    """Writes images and, of some, copies of every kind; the files in order, and the planted pairs by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    files, pairs = [], {kind: set() for kind in KINDS}

    def add(name: str, content: bytes) -> None:
        files.append(folder / name)
        if not files[-1].exists():
            files[-1].write_bytes(content)

    for number, row in enumerate(rows):
        pixels = source.read(int(row)).expand(3, -1, -1).permute(1, 2, 0).numpy()
        add(f"{number:05d}.jpg", _encoded(Image.fromarray(pixels)))
    order = iter(permutation(len(rows), COPIES))
    for kind, number in zip(itertools.cycle(KINDS), range(copies), strict=False):
        original = int(next(order))
        with Image.open(files[original]) as image:
            add(f"copy-{number:05d}-{kind}.jpg", KINDS[kind](image.convert("RGB")))
        pairs[kind].add((original, len(files) - 1))
    return files, pairs


def embed(opened: Opened, data: Any, keep: Path, *, split: Any = "train") -> NDArray[np.float32]:
    """Features of images by an encoder, kept in a folder."""
    return evaluation.embed(opened.encoder, opened.config.data, as_data(data), split=split, keep=keep).features


def similar_pairs(features: NDArray[np.float32], least: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs (m, 2) of images with a cosine similarity of at least ``least``, and their similarities (m,)."""
    rows = unit_rows(features).numpy()
    found = []
    for start in range(0, len(rows), 1024):
        values = np.triu(rows[start : start + 1024] @ rows[start:].T, k=1)
        i, j = np.nonzero(values >= least)
        found.append(np.column_stack([i + start, j + start, values[i, j]]))
    table = np.concatenate(found)
    return table[:, :2].astype(np.int64), table[:, 2]


def hash_pairs(files: list[Path], most: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of images whose perceptual hashes differ in at most ``most`` bits, and the negative number of bits."""
    import imagehash

    bits = []
    for path in files:
        with Image.open(path) as image:
            bits.append(imagehash.phash(image).hash.ravel())
    signs = 2.0 * np.stack(bits).astype(np.float32) - 1.0
    found = []
    for start in range(0, len(signs), 1024):
        distances = (signs.shape[1] - signs[start : start + 1024] @ signs[start:].T) / 2
        i, j = np.nonzero((distances <= most) & (np.arange(distances.shape[1]) > np.arange(len(distances))[:, None]))
        found.append(np.column_stack([i + start, j + start, -distances[i, j]]))
    table = np.concatenate(found)
    return table[:, :2].astype(np.int64), table[:, 2]


def score(
    scored: tuple[NDArray[np.int64], NDArray[np.float64]],
    planted: dict[str, Pairs],
    threshold: float,
    growth: float = 1.0,
) -> dict:
    """Precision and recall of the pairs at a threshold, and the recall by kind; wrong pairs count ``growth`` times."""
    pairs, values = scored
    found = set(map(tuple, pairs[values >= threshold].tolist()))
    right = set().union(*planted.values())
    hits = len(found & right)
    precision, recall = hits / max(1, hits + growth * (len(found) - hits)), hits / len(right)
    return {
        "threshold": threshold, "pairs": len(found), "precision": precision, "recall": recall,
        "f1": 2 * precision * recall / max(1e-12, precision + recall),
        "recall_by_kind": {kind: len(found & of_kind) / max(1, len(of_kind)) for kind, of_kind in planted.items()},
    }  # fmt: skip


def best(
    scored: tuple[NDArray[np.int64], NDArray[np.float64]], planted: dict[str, Pairs], tried: list[float], growth: float
) -> float:
    """The threshold of the highest F1, of equal ones the highest."""
    return max(tried, key=lambda threshold: (score(scored, planted, threshold, growth)["f1"], threshold))


def duplicates(opened: Opened, parts: dict[str, tuple], work: Path) -> dict[str, Any]:
    """Both detectors on the second part, at thresholds of the first, and the features of the second part."""
    cosines, bits = [round(float(x), 4) for x in np.arange(0.5, 1.0, 0.0025)], [-float(x) for x in range(17)]
    scored = {
        name: (similar_pairs(embed(opened, list(map(str, files)), work / f"features-{name}"), cosines[0]),
               hash_pairs(files, 16), planted)
        for name, (files, planted) in parts.items()
    }  # fmt: skip
    first, second = scored["choice"], scored["measured"]
    images, copies = (
        [len(parts[part][0]) for part in ("choice", "measured")],
        [sum(map(len, parts[part][1].values())) for part in ("choice", "measured")],
    )
    growth = (images[1] / images[0]) ** 2 * copies[0] / copies[1]
    chosen = best(first[0], first[2], cosines, growth), best(first[1], first[2], bits, growth)
    return {
        "features": score(second[0], second[2], chosen[0]),
        "features_at_the_default": score(second[0], second[2], THRESHOLD),
        "perceptual_hash": score(second[1], second[2], chosen[1]),
        "curve": [score(second[0], second[2], x) for x in cosines[::8]],
        "hash_curve": [score(second[1], second[2], x) for x in bits[::2]],
    }


def mislabels(features: NDArray[np.float32], labels: NDArray[np.int64]) -> list[dict[str, float]]:
    """Of every draw: planted labels among the first hundred, and precision and recall of the whole list."""
    classes, results = int(labels.max()) + 1, []
    for draw in range(DRAWS):
        wrong = permutation(len(labels), LABELS, draw)[: round(WRONG * len(labels))]
        noisy = labels.copy()
        noisy[wrong] = (labels[wrong] + 1 + np.random.default_rng(draw).integers(0, classes - 1, len(wrong))) % classes
        listed = label_issues(features, noisy).indices
        hits = np.isin(listed, wrong)
        results.append({
            "planted": len(wrong), "listed": len(listed), "of_the_first_100": int(hits[:100].sum()),
            "precision": float(hits.mean()) if len(hits) else 0.0, "recall": float(hits.sum() / len(wrong)),
        })  # fmt: skip
    return results


def subsets(
    features: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32], answers: NDArray[np.int64]
) -> dict[str, list[float]]:
    """The accuracy of the linear probe on every rule's tenth of five pools."""
    accuracies: dict[str, list[float]] = {name: [] for name in ("random", *RULES)}
    for draw in range(DRAWS):
        pool = permutation(len(labels), SUBSETS, draw)[: round(POOL * len(labels))]
        count = round(TENTH * len(pool))
        for name in accuracies:
            chosen = pool[:count] if name == "random" else pool[select(features[pool], count=count, rule=name).indices]
            x, y = torch.tensor(features[chosen]), torch.tensor(labels[chosen])
            probe = next(fit_path(x, y, classes=int(labels.max()) + 1, penalties=(1.0,)))
            accuracies[name].append(float((probe.predict(torch.tensor(test)).numpy() == answers).mean()))
    return accuracies


def _labelled(source: Source, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    labels, _ = source.labelled()
    return labels[rows]


def _summary(result: dict[str, Any]) -> Iterator[str]:
    for name in ("features", "features_at_the_default", "perceptual_hash"):
        one = result["duplicates"][name]
        yield f"{name}: precision {one['precision']:.3f}, recall {one['recall']:.3f} at {one['threshold']:g}"
    yield f"of the first 100 wrong labels: {[one['of_the_first_100'] for one in result['mislabels']]}"
    for name, values in result["subsets"].items():
        yield f"{name}: {100 * np.mean(values):.1f} % (sd {100 * np.std(values, ddof=1):.1f})"


def main() -> None:
    """Plants, measures, prints and writes."""
    parser = command_line(__doc__, "find.json")
    parser.add_argument("--data-root", type=Path, help="The folder of the packed images.")
    parser.add_argument("--encoder", default="random/tiny_resnet", help="WHERE the encoder is.")
    parser.add_argument("--image-size", type=int, default=None, help="Side of its images; None: its own.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for images and features.")
    parser.add_argument("--share", type=float, default=1.0, help="Of the images that are used, for a shorter run.")
    options = parser.parse_args()
    result = run(options)
    save(options.out, result)
    print(*_summary(result), sep="\n")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The three measurements."""
    name = "digits" if options.quick else str(options.data_root / "imagenette128")
    train, test = (open_source(name, split=split, data_root=None) for split in ("train", "test"))
    sizes = (100, 8, 300, 40) if options.quick else tuple(round(options.share * size) for size in _SIZES)
    order = permutation(len(train), ORDER)
    rows = {"choice": order[: sizes[0]], "measured": order[sizes[0] : sizes[0] + sizes[2]]}
    opened = open_encoder(options.encoder, image_size=options.image_size)
    parts = {
        part: plant(train, chosen, copies, options.work / part)
        for (part, chosen), copies in zip(rows.items(), (sizes[1], sizes[3]), strict=True)
    }
    found = duplicates(opened, parts, options.work)
    files = list(map(str, parts["measured"][0]))
    features = embed(opened, files, options.work / "features-measured")[: sizes[2]]
    shown, _ = plant(test, permutation(len(test), ORDER)[: sizes[0]], 0, options.work / "test")
    labels, answers = _labelled(train, rows["measured"]), _labelled(test, permutation(len(test), ORDER)[: sizes[0]])
    held_out = embed(opened, list(map(str, shown)), options.work / "features-test")
    return {
        "encoder": {"name": opened.where.label, "network": opened.config.network.encoder, "sha256": opened.sha256,
                    "image_size": opened.config.data.image_size},
        "data": {"train": train.digest, "test": test.digest, "images": sizes[2] + sizes[3], "tested_on": len(shown)},
        "duplicates": found,
        "mislabels": mislabels(features, labels),
        "subsets": subsets(features, labels, held_out, answers),
    }  # fmt: skip


if __name__ == "__main__":
    main()
