"""Results of a comparison with made-up but plausible contents, for its tests."""

from typing import Any

import numpy as np

METHODS = [
    "matrix_ssl", "simsiam", "byol", "barlow_twins", "vicreg", "simclr", "moco_v2", "swav", "dino", "/home/me/own.py",
]  # fmt: skip
ENVIRONMENT = {"python": "3.11.2", "torch": "2.11", "device": "cpu", "device_name": "Some Processor", "threads": 2}


def make_comparison(*, methods: list[str] = METHODS, seeds: int = 5, rivals_budget: int | None = None) -> dict:
    """A complete comparison; each method is a little worse than the one before it."""
    rows = [make_row(m, place, seed, 80) for place, m in enumerate(methods) for seed in range(seeds)]
    if rivals_budget:
        rows += [
            make_row(m, place, seed, rivals_budget)
            for place, m in enumerate(methods) if place for seed in range(seeds)
        ]  # fmt: skip
    return {
        "command": f"matrix-ssl compare demo --methods all --seeds {seeds}",
        "recipe": "demo",
        "reference": methods[0],
        "methods": list(methods),
        "seeds": list(range(seeds)),
        "budget": 80,
        "rivals_budget": rivals_budget,
        "measure": "linear",
        "data": {"name": "digits", "train": 1437, "test": 360, "classes": 10},
        "settings": {"network.encoder": "tiny_resnet", "batch_size": 256, "augment.crop": [0.2, 1.0]},
        "environment": ENVIRONMENT,
        "baselines": {
            "raw_pixels": {"linear": score(0.95), "knn_20": score(0.96), "low_shot_1": score(0.5, n=10)},
            "random_network": {"linear": score(0.91)},
        },
        "tuning": {
            "trials": 3, "budget": 40, "held_out": 0.2, "measure": "linear", "settings": ["network.width=16"],
            "rows": [trial(m, place, t) for place, m in enumerate(methods) for t in range(3)],
        },
        "rows": rows,
    }  # fmt: skip


def score(mean: float, n: int = 1) -> dict[str, float]:
    """An accuracy as the evaluation writes it."""
    return {"mean": mean, "sd": 0.02 if n > 1 else 0.0, "n": n}


def make_row(method: str, place: int, seed: int, epochs: int) -> dict[str, Any]:
    """One run that ended well."""
    noise = np.random.default_rng([place, seed, epochs]).normal(size=20)
    linear = 0.98 - 0.004 * place + 0.003 * noise[0] + 0.002 * (seed % 3) + 0.00002 * (epochs - 80)
    accuracy = {"linear": score(linear), "knn_1": score(linear - 0.01), "knn_20": score(linear - 0.02)}
    accuracy |= {f"low_shot_{n}": score(linear - 0.3 / n - 0.01 * noise[n], n=10) for n in (1, 5, 10)}
    seconds = (40 + 3 * place + noise[1]) * epochs / 80
    return {
        "method": method, "seed": seed, "epochs": epochs,
        "settings": {"optimizer.learning_rate": 0.005 * (1 + place % 3), "method.temperature": 0.1},
        "accuracy": accuracy, "seconds": seconds, "cpu_seconds": 0.9 * seconds,
        "images_per_second": 1437 * epochs / seconds,
        "peak_memory_mib": 500.0 + 20 * place, "parameters": 77000, "steps": 5 * epochs, "bad_steps": 0,
        "curve": [make_point(t, place, epochs, seconds, noise) for t in range(1, 11)], "environment": ENVIRONMENT,
    }  # fmt: skip


def make_point(t: int, place: int, epochs: int, seconds: float, noise: np.ndarray) -> dict[str, float]:
    """Point ``t`` of ten of a curve; every second one has an accuracy."""
    entropy = (3.5 - 0.2 * place) * (1 - np.exp(-0.4 * t)) + 0.05 * noise[t]
    point = {
        "step": epochs * t // 2, "epoch": epochs * t / 10, "seconds": seconds * t / 10, "loss": 3 / t,
        "effective_rank": float(np.exp(entropy)), "matrix_entropy": float(entropy),
    }  # fmt: skip
    if t % 2 == 0:
        point["knn_20_held_out"] = float(0.95 - 0.005 * place - 0.6 * np.exp(-0.35 * t) + 0.005 * noise[t])
    return point


def trial(method: str, place: int, number: int) -> dict[str, Any]:
    """One trial of tuning; the second is chosen."""
    return {
        "method": method, "trial": number, "settings": {"optimizer.learning_rate": 0.0025 * 2**number},
        "accuracy": {"linear": 0.9 - 0.01 * (number - 1) ** 2 - 0.002 * place, "knn_20": 0.88},
        "chosen": number == 1, "seconds": 12.0,
    }  # fmt: skip


def failed(method: str, seed: int, message: str = "the loss was not finite at step 12") -> dict[str, Any]:
    """A run that ended with an error."""
    return {"method": method, "seed": seed, "epochs": 80, "settings": {}, "error": message}
