"""The result of a diagnosis for a terminal, and its page ``diagnose.html``, which opens offline. Uses no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE
from rich.table import Table

from matrix_ssl.report import svg
from matrix_ssl.report.run.figures import Figurine, number, whole
from matrix_ssl.report.svg import colour
from matrix_ssl.report.template import render
from matrix_ssl.runs.files import write_atomically

RESULT, PAGE = "diagnose.json", "diagnose.html"
MEASURES = {
    "matrix_entropy": "matrix entropy",
    "effective_rank": "effective rank",
    "erank": "eRank",
    "matrix_nuclear_norm": "nuclear norm",
}
_STEPS = [1, 2, 2.5, 5, 10]


def layer_name(layer: int) -> str:
    """How a person calls a layer; 0 is what enters the first one."""
    return "embeddings" if layer == 0 else f"layer {layer}"


def terminal(result: Mapping[str, Any]) -> Table:
    """A row a layer, for a terminal of 80 columns."""
    title = f"{whole(result['tokens'])} tokens in {whole(result['windows'])} windows"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    names, *rows = _table(result)
    for name in names:
        longest = max(map(len, name.split()))
        table.add_column(name, justify="left" if name == "layer" else "right", min_width=longest)
    for row in rows:
        table.add_row(*row)
    return table


def write_page(out: Path, result: Mapping[str, Any]) -> Path:
    """Writes ``diagnose.html`` from what ``diagnose.json`` holds; the same result gives the same bytes.

    Raises:
        RunFolderError: the page cannot be written.
    """
    model, reference = result["model"], result["reference"]
    special = [*result["special_tokens"]["before"], *result["special_tokens"]["after"]]
    facts = [
        ("Architecture", f"{model['type']}, {model['layers']} layers, width {model['width']}"),
        ("Precision", model["precision"]),
        ("Reference", "none" if reference is None else _reference(reference)),
        ("Text", result["text"]),
        ("Tokens", whole(result["tokens"])),
        ("Windows", whole(result["windows"])),
        ("Special tokens of a window", " ".join(special) or "none"),
    ]
    environment = [(key, str(value)) for key, value in result["environment"].items()]
    values = {
        "name": model["name"],
        "verdict": _verdict(result),
        "facts": facts,
        "figures": _figures(result),
        "table": _table(result),
        "environment": environment,
    }
    page, path = render("diagnosis.html", values), out / PAGE

    def write(file: IO[bytes]) -> None:
        file.write(page.encode(errors="backslashreplace"))

    write_atomically(path, write)
    return path


def _reference(reference: Mapping[str, Any]) -> str:
    return f"{reference['name']}, seed {reference['seed']}" if "seed" in reference else str(reference["name"])


def _verdict(result: Mapping[str, Any]) -> str:
    row = result["rows"][-1]
    text = f"At {_called(row)}, a window's tokens spread over {number(row['erank'])} directions (eRank)"
    if "diff_erank" in row:
        text += f", {number(row['reference']['erank'])} in the reference: a Diff-eRank of {number(row['diff_erank'])}"
    return f"{text}. All tokens together have an effective rank of {number(row['effective_rank'])}."


def _called(row: Mapping[str, Any]) -> str:
    name = layer_name(row["layer"])
    return f"the {name}" if row["layer"] == 0 else name


def _table(result: Mapping[str, Any]) -> list[list[str]]:
    """The numbers of all layers as text; the first row is the header."""
    compared = result["reference"] is not None
    table = [["layer", *MEASURES.values(), *(["reference eRank", "Diff-eRank"] if compared else [])]]
    for row in result["rows"]:
        values = [row[key] for key in MEASURES]
        values += [row["reference"]["erank"], row["diff_erank"]] if compared else []
        table.append([layer_name(row["layer"]), *map(number, values)])
    return table


def _figures(result: Mapping[str, Any]) -> list[Figurine]:
    rows, compared = result["rows"], result["reference"] is not None
    captions = {
        "matrix_entropy": "Entropy, in nats, of the covariance of all tokens scaled to trace one: 0 where they lie on "
        "a line. Few directions of a large variance keep it low.",
        "effective_rank": "The exponential of the matrix entropy: between 1 and the width.",
        "erank": "Diff-eRank's effective rank: tokens centred within their window and scaled to length one, the "
        "exponential of the mean entropy over windows.",
        "matrix_nuclear_norm": "Sum of the largest column norms of a window's centred tokens of length one, over their "
        "number; mean over windows. It depends on the axes.",
    }
    figures = []
    for key, title in MEASURES.items():
        curves = [("model", [row[key] for row in rows])]
        if compared:
            curves.append(("reference", [row["reference"][key] for row in rows]))
        figures.append(_over_layers(key, title, captions[key], [row["layer"] for row in rows], curves))
    if compared:
        curves = [("reference − model", [row["diff_erank"] for row in rows])]
        caption = (
            "Diff-eRank: eRank of the reference minus that of the model; above zero where training removed directions."
        )
        figures.append(_over_layers("diff_erank", "Diff-eRank", caption, [row["layer"] for row in rows], curves))
    return figures


def _over_layers(
    name: str, title: str, caption: str, layers: Sequence[int], curves: Sequence[tuple[str, Sequence[float]]]
) -> Figurine:
    """Curves of one measure over the layers."""
    with svg.drawing():
        figure = svg.new_figure(230)
        axes = figure.add_subplot()
        svg.plain_axes(axes)
        for i, (label, values) in enumerate(curves):
            line, marker = ("-", "o") if i == 0 else ("--", "s")
            axes.plot(
                layers, values, label=label, color=colour(f"series-{i}"), linestyle=line, marker=marker,
                linewidth=1.8, markersize=4,
            )  # fmt: skip
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=colour("soft"), fontsize=svg.TEXT)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=_STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
        axes.set_xlabel("layer, 0: embeddings", loc="right", color=colour("soft"))
        ends = [f"{label}: {number(v[0])} at {layers[0]}, {number(v[-1])} at {layers[-1]}." for label, v in curves]
        drawing = svg.inline_svg(figure, name, title=title, description=" ".join(ends))
    return Figurine(name, title[0].upper() + title[1:] if title != "eRank" else title, caption, drawing)
