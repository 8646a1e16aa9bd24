"""How ranks, entropies and shared information move while each method trains, on the digits at a small size.

    python -m benchmarks.experiments.pictures           (writes benchmarks/results/pictures.json)
    python -m benchmarks.experiments.pictures --quick   (two methods, two epochs)

Every method with its default settings under the recipe ``demo``, with a narrow encoder and fewer epochs; masked methods
get a small vision transformer and decoder, since they need tokens, and DINO a small head. Nothing is tuned, and no two
methods are compared. The command continues where it was stopped, and ``benchmarks.pages.publish_pictures`` draws the
figures and fills the page.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import command_line, save
from matrix_ssl.api.pretraining import pretrain
from matrix_ssl.methods import find_method, list_methods
from matrix_ssl.runs.metrics import read_metrics

SETTINGS = {"network.width": 8, "epochs": 40, "log_every": 20, "optimizer.warmup_epochs": 4}
SMALL_HEADS: dict[str, dict[str, Any]] = {"dino": {"method.prototypes": 1024, "method.head_norm": True}}  # else minutes
TOKENS = {"network.encoder": "timm/test_vit", "network.patch_size": 2, "method.decoder_dim": 64,
          "method.decoder_depth": 2, "method.decoder_heads": 2}  # fmt: skip
KEPT = ("effective_rank", "effective_rank_projection", "matrix_entropy", "mir", "hdr", "online_knn")
SEEDS = (0, 1)


def main() -> None:
    options = command_line(__doc__, "pictures.json").parse_args()
    methods, seeds = list_methods(), SEEDS
    settings: dict[str, Any] = dict(SETTINGS)
    if options.quick:
        methods, seeds, settings = ["matrix_ssl", "simclr"], (0,), settings | {"epochs": 2, "log_every": 1}
    rows = read_rows(options.out, settings)
    for seed in seeds:
        for method in methods:
            if not any((row["method"], row["seed"]) == (method, seed) for row in rows):
                rows.append(train(method, seed, settings))
                save(options.out, {"settings": settings, "tokens": TOKENS, "rows": rows})


def read_rows(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What an earlier call with the same settings has measured."""
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return content["rows"] if content.get("settings") == settings else []


def train(method: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The curves of one training."""
    own = (TOKENS if find_method(method).needs_tokens else {}) | SMALL_HEADS.get(method, {})
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        pretrain(
            recipe="demo", method=method, out=Path(folder) / "run", settings=settings | own | {"seed": seed},
            online=True, information=True, report=False, quiet=True, device="cpu",
        )  # fmt: skip
        lines = read_metrics(Path(folder) / "run")
    curves = {name: [[line["step"], line[name]] for line in lines if line.get(name) is not None] for name in KEPT}
    return {"method": method, "seed": seed, "steps": lines[-1]["step"], "curves": curves}


if __name__ == "__main__":
    main()
