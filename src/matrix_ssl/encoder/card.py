"""Model cards: what an encoder is, in Markdown with the front matter that the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from matrix_ssl.config import RunConfig

CARD = "README.md"  # of a folder; a file NAME has NAME.md
IMPORTED = "imported"  # the recipe of a run that was not trained here
_LICENCE = "Not stated. Whoever publishes this file says here, and above, who may use it and how."
_MEASURES = {"linear": "linear", "knn_1": "1-NN", "knn_20": "20-NN", "low_shot_1": "1 label a class",
             "low_shot_5": "5 labels a class", "low_shot_10": "10 labels a class"}  # fmt: skip
_ROWS = {"encoder": "this encoder", "raw_pixels": "raw pixels", "random_network": "untrained network"}


def model_card(
    *,
    config: RunConfig,
    summary: Mapping[str, Any],
    weights: str,
    facts: Mapping[str, str],
    library: str,
    code: str,
    notes: Sequence[str],
) -> str:
    """The text of a model card.

    Args:
        config: of the run.
        summary: of the run; accuracies are taken from it if it was evaluated with these weights.
        weights: student or teacher.
        facts: more rows of the first table.
        library: that loads the file, as the hub calls it.
        code: Python that loads it.
        notes: paragraphs on its use.
    """
    rows = _origin(config, summary, weights) | dict(facts)
    return "\n".join([
        "---",
        f"library_name: {library}",
        "pipeline_tag: image-feature-extraction",
        "license: unknown  # fill in: who may use these weights, and how",
        "tags:",
        "- matrix-ssl",
        "- self-supervised-learning",
        "---",
        "",
        f"# {config.network.encoder}, an encoder of images",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in rows.items() if text),
        "",
        "## Loading",
        "",
        "```python",
        code,
        "```",
        *(line for note in notes for line in ("", note)),
        *_accuracies(summary, weights),
        "",
        "## Licence",
        "",
        _LICENCE,
        "",
    ])  # fmt: skip


def method_of(config: RunConfig) -> str:
    """The method that trained an encoder; that of an imported one is not known here."""
    return "unknown" if config.recipe == IMPORTED else config.method.name


def _origin(config: RunConfig, summary: Mapping[str, Any], weights: str) -> dict[str, str]:
    data = config.data
    numbers = {name: ", ".join(f"{value:g}" for value in getattr(data, name)) for name in ("mean", "std")}
    rows = {
        "Architecture": config.network.encoder,
        "Images": f"{len(data.mean)} channels, {data.image_size} x {data.image_size} pixels in [0, 1], minus "
        f"{numbers['mean']}, divided by {numbers['std']}",
    }
    if imported := summary.get("imported"):
        return rows | {"Imported from": f"{imported['file']}, SHA-256 {imported['sha256']}: {imported['matched']}"}
    images = summary.get("data", {})
    return rows | {
        "Trained by": f"{config.method.name}, {weights}",
        "Trained on": f"{images['images']} images of {images['name']}, without labels" if images else "",
        "Epochs": f"{summary.get('epochs', config.epochs)} of batch {config.batch_size}, seed {config.seed}",
    }


def _accuracies(summary: Mapping[str, Any], weights: str) -> list[str]:
    """A section with the accuracies of an evaluated run; nothing for other weights than those evaluated."""
    if "evaluation" not in summary or summary.get("weights") != weights:
        return []
    found = {"encoder": summary["evaluation"], **summary["baselines"]}
    columns = [name for name in _MEASURES if name in found["encoder"]]
    on = summary["evaluated_on"]
    lines = [f"| | {' | '.join(_MEASURES[name] for name in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, heading in _ROWS.items():
        cells = [f"{100 * found[name][column]['mean']:.1f}" if column in found[name] else "" for column in columns]
        lines.append(f"| {heading} | {' | '.join(cells)} |")
    text = (
        f"Test images classified correctly from frozen features, in percent: {on['name']}, {on['train']} labelled "
        f"images to learn from, {on['test']} to test, {on['classes']} classes."
    )
    return ["", "## Accuracy", "", text, "", *lines]
