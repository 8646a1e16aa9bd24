"""A run folder with made-up but plausible contents, for the tests of the report."""

import json
from pathlib import Path

import numpy as np

from matrix_ssl.config import DataConfig, MethodConfig, RunConfig, to_dict

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DIMENSION = 128


def make_run(
    folder: Path, *, lines: int = 200, classes: list[str] | None = None, side: int = 32, channels: int = 3
) -> Path:
    """A complete run of ``lines`` logged steps; ``classes`` empty: a run on images without labels."""
    classes = CLASSES if classes is None else classes
    folder.mkdir(parents=True)
    config = RunConfig(recipe="small", data=DataConfig(source="sets/cifar10"), method=MethodConfig("matrix_ssl"))
    _write(folder / "config.json", to_dict(config))
    _write(folder / "environment.json", {"python": "3.11.2", "torch": "2.11", "device": "cpu", "threads": 2})
    metrics = [json.dumps(line) for line in make_lines(lines)]
    (folder / "metrics.jsonl").write_text("\n".join(metrics) + "\n", encoding="utf-8")
    _write(folder / "summary.json", make_summary(10 * (lines - 1)))
    if classes:
        (folder / "evaluation" / "cifar10").mkdir(parents=True)
        for protocol, values in make_results().items():
            _write(folder / "evaluation" / "cifar10" / f"{protocol}.json", values)
    np.savez(folder / "evaluation.npz", **make_arrays(classes, side=side, channels=channels))
    return folder


def make_lines(n: int) -> list[dict]:
    noise = np.random.default_rng(0).normal(size=(n, 4))
    lines = []
    for i in range(n):
        t = i / max(n - 1, 1)
        decay = np.exp(-4 * t)
        eigenvalues = np.arange(1, DIMENSION + 1) ** -(0.8 + 1.7 * decay)
        eigenvalues /= eigenvalues.sum()
        entropy = float(-(eigenvalues * np.log(eigenvalues)).sum())
        line = {
            "step": 10 * i,
            "epoch": 50 * t,
            "seconds": 2.5 * i,
            "loss": 2 + 5 * decay + 0.15 * noise[i, 0],
            "uniformity": 1.5 + 3 * decay + 0.1 * noise[i, 1],
            "alignment": 0.5 + 2 * decay + 0.05 * noise[i, 2],
            "learning_rate": 0.5 * min(10 * t, 0.5 + 0.5 * np.cos(np.pi * t)),
            "teacher_momentum": 1 - 0.004 * (0.5 + 0.5 * np.cos(np.pi * t)),
            "effective_rank": float(np.exp(entropy)),
            "matrix_entropy": entropy,
            "effective_rank_projection": 1 + 40 * (1 - decay),
            "spread_projection": 0.5 + 0.5 * (1 - decay),
            "teacher_similarity": 0.9 - 0.3 * decay + 0.01 * noise[i, 3],
            "negative_determinants": 0,
            "bad_steps": 0,
            "images_per_second": 812.5,
        }
        if i % max(n // 20, 1) == 0 or i == n - 1:
            line["spectrum"] = eigenvalues.tolist()
        lines.append(line)
    return lines


def make_summary(steps: int) -> dict:
    return {
        "recipe": "small",
        "finished": True,
        "steps": steps,
        "epochs": 50,
        "parameters": 11_173_962,
        "seconds": 4321.0,
        "seconds_training": 4000.0,
        "skipped": 3,
        "data": {"name": "cifar10", "images": 50_000},
    }


def make_results() -> dict[str, dict]:
    """By protocol, what the files of an evaluation hold."""
    keys = ("low_shot_1", "low_shot_5", "low_shot_10", "linear", "knn_1", "knn_20")
    scores = {
        "this": (0.452, 0.601, 0.655, 0.823, 0.771, 0.794),
        "raw_pixels": (0.161, 0.212, 0.235, 0.392, 0.353, 0.339),
        "random_network": (0.149, 0.194, 0.221, 0.431, 0.302, 0.318),
    }
    measures = {
        name: {
            key: {"accuracy": mean, "interval": [mean - 0.01, mean + 0.01], "mean_per_class": mean - 0.001}
            | ({"sd_over_draws": 0.02} if key.startswith("low") else {})
            for key, mean in zip(keys, row, strict=True)
        }
        for name, row in scores.items()
    }
    results = {}
    for protocol in ("knn", "linear", "low-shot"):
        chosen = {
            name: {key: value for key, value in row.items() if key.startswith(protocol.replace("-", "_"))}
            for name, row in measures.items()
        }
        results[protocol] = {
            "protocol": protocol,
            "weights": "student",
            "set": {
                "train": {"images": 50_000, "classes": 10},
                "test": {"images": 10_000, "classes": 10, "name": "cifar10"},
            },
            "training_images": 50_000,
            "measures": chosen.pop("this"),
            "baselines": chosen,
        }
    return results


def make_arrays(classes: list[str], *, side: int = 32, channels: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    k = max(len(classes), 1)
    labels = np.arange(1000) % k if classes else np.full(1000, -1)
    angle = 2 * np.pi * labels / k
    centres = 8 * np.stack([np.cos(angle), np.sin(angle)], 1)
    queries, neighbours = 6, 7
    query_label = np.arange(queries) % k if classes else np.full(queries, -1)
    neighbour_label = np.repeat(query_label[:, None], neighbours, axis=1)
    if len(classes) > 1:
        neighbour_label[0, 2] = 1
    return {
        "map": (centres + generator.normal(size=(1000, 2))).astype(np.float32),
        "map_labels": labels.astype(np.int64),
        "classes": np.array(classes, dtype=str),
        "gallery_query": generator.integers(0, 256, (queries, side, side, channels)).astype(np.uint8),
        "gallery_neighbours": generator.integers(0, 256, (queries, neighbours, side, side, channels)).astype(np.uint8),
        "gallery_query_label": query_label.astype(np.int64),
        "gallery_neighbour_label": neighbour_label.astype(np.int64),
        "gallery_query_where": np.array([f"photos/{i}.png" for i in range(queries)]),
        "gallery_neighbour_where": np.array(
            [[f"photos/{i}-{j}.png" for j in range(neighbours)] for i in range(queries)]
        ),
        "gallery_similarity": np.linspace(0.98, 0.6, queries * neighbours, dtype=np.float32).reshape(queries, -1),
    }


def _write(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")
