"""Model cards: a description of an encoder in Markdown, with the front matter that the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matrix_ssl.config import RunConfig
from matrix_ssl.config.untrusted import MOST_TEXT, read_file
from matrix_ssl.errors import RunFolderError
from matrix_ssl.report.formats import markdown
from matrix_ssl.runs.files import cannot_write

if TYPE_CHECKING:
    from matrix_ssl.report.tables import ResultTable

CARD = "README.md"  # in a folder; a file NAME has NAME.md
IMPORTED = "imported"  # the recipe of a run that was not trained here
_LICENCE = "Not stated. Whoever publishes this file says here, and above, who may use it and how."
_UNKNOWN = "license: unknown  # fill in: who may use these weights, and how"


def model_card(
    *,
    config: RunConfig,
    summary: Mapping[str, Any],
    weights: str,
    facts: Mapping[str, str],
    library: str,
    code: str,
    notes: Sequence[str],
    tables: Sequence["ResultTable"] = (),
) -> str:
    """The text of a model card, with ``facts`` as table rows and ``code`` that loads it with ``library``."""
    rows = _origin(config, summary, weights) | dict(facts)
    return "\n".join([
        "---", f"library_name: {library}", "pipeline_tag: image-feature-extraction",
        _UNKNOWN,
        "tags:", "- matrix-ssl", "- self-supervised-learning", "---", "",
        f"# {markdown(config.network.encoder)}, an encoder of images", "",
        "| | |", "|---|---|", *(f"| {name} | {markdown(text)} |" for name, text in rows.items() if text), "",
        "## Loading", "", "```python", code, "```",
        *(line for note in notes for line in ("", note)),
        *(["", "## Accuracy"] if tables else []),
        *(line for table in tables for line in ("", _heading(table), "", table.markdown())),
        "", "## Licence", "", _LICENCE, "",
    ])  # fmt: skip


def check_card(path: Path) -> None:
    """Raises RunFolderError if a new card would replace a file that no command can restore.

    That is a file which is not a card, or a card in which somebody has filled in the licence.
    """
    try:
        text = read_file(path, most=MOST_TEXT).decode(errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(path, error) from error
    if _UNKNOWN not in text or _LICENCE not in text:
        raise RunFolderError(
            f"{path} would be replaced by the model card, but it is not one, or its licence has been filled in: move "
            "it, or choose a different --out."
        )


def _origin(config: RunConfig, summary: Mapping[str, Any], weights: str) -> dict[str, str]:
    data = config.data
    numbers = {name: ", ".join(f"{value:g}" for value in getattr(data, name)) for name in ("mean", "std")}
    low_high = f" ({data.value_range[0]:g} to {data.value_range[1]:g} as stored)" if data.value_range else ""
    rows = {
        "Architecture": config.network.encoder,
        "Images": f"{len(data.mean)} channels, {data.image_size} x {data.image_size} pixels in [0, 1]{low_high}, minus "
        f"{numbers['mean']}, divided by {numbers['std']}",
    }
    imported, images = (_group(summary, name) for name in ("imported", "data"))
    if imported:
        names = ("file", "sha256", "matched")
        file, sha256, matched = (imported.get(name, "unknown") for name in names)
        return rows | {"Imported from": f"{file}, SHA-256 {sha256}: {matched}"}
    start = config.start
    return rows | {
        "Started from": f"{start.reference}, SHA-256 {start.sha256}: {start.origin}" if start.reference else "",
        "Trained by": f"{config.method.name}, {weights}",
        "Trained on": f"{images.get('images', '?')} images of {images.get('name', '?')}, without labels"
        if images
        else "",
        "Epochs": f"{summary.get('epochs', config.epochs)} of batch {config.batch_size}, seed {config.seed}",
    }


def _heading(table: "ResultTable") -> str:
    return f"**{markdown(table.title)}.** {markdown(table.note)}"


def _group(summary: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = summary.get(name)
    return value if isinstance(value, Mapping) else {}
