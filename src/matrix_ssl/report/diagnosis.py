"""The result of diagnosing a language model: for a terminal, and as a page that opens offline. Uses no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from matrix_ssl.report import template
from matrix_ssl.report.figures import Curve, Figurine, Panel, stacked
from matrix_ssl.report.formats import ABSENT, Cell, number, settings, whole
from matrix_ssl.report.terminal import empty_table

RESULT, PAGE = "diagnose.json", "diagnose.html"
MEASURES = {
    "matrix_entropy": "matrix entropy",
    "effective_rank": "effective rank",
    "erank": "eRank",
    "matrix_nuclear_norm": "nuclear norm",
    "normalised_matrix_entropy": "normalised matrix entropy",
    "token_entropy": "token entropy",
    "normalised_token_entropy": "normalised token entropy",
    "curvature": "curvature",
    "dime": "DiME",
    "lidar": "LiDAR",
}
_ON_THE_PAGE = ("normalised matrix entropy", "token entropy", "normalised token entropy", "curvature", "DiME", "LiDAR")


def layer_name(layer: int) -> str:
    """The name of a layer in tables; 0 is the input of the first one."""
    return "embeddings" if layer == 0 else f"layer {layer}"


def terminal(result: Mapping[str, Any]) -> Table:
    """One row per layer, for a terminal of 80 columns, without the measures that only the page has."""
    title = f"{whole(result['tokens'])} tokens in {whole(result['windows'])} windows"
    table = empty_table(title)
    names, *rows = _table(result)
    shown = [i for i, name in enumerate(names) if name not in _ON_THE_PAGE]
    for i in shown:
        longest = max(map(len, names[i].split()))
        table.add_column(names[i], justify="right" if i else "left", min_width=longest)
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    return table


def write_page(out: Path, result: Mapping[str, Any]) -> Path:
    """Writes ``diagnose.html`` from the contents of ``diagnose.json``; the same result gives the same bytes."""
    model, reference = result["model"], result["reference"]
    seed = f", seed {reference['seed']}" if reference and "seed" in reference else ""
    special = [*result["special_tokens"]["before"], *result["special_tokens"]["after"]]
    facts = [
        ("Architecture", f"{model['type']}, {model['layers']} layers, width {model['width']}"),
        ("Precision", model["precision"]),
        ("Reference", f"{reference['name']}{seed}" if reference else "none"),
        ("Text", result["text"]),
        ("Tokens", whole(result["tokens"])),
        ("Windows", whole(result["windows"])),
        ("Special tokens of a window", " ".join(special) or "none"),
    ]
    names, *rows = _table(result)
    values = {
        "title": f"Representations of {model['name']} – matrix-ssl",
        "heading": "Token representations",
        "kind": model["name"],
        "verdict": [_verdict(result)],
        "notes": [],
        "facts": facts,
        "rows": [(row[0], "", list(map(Cell, names[1:], row[1:]))) for row in rows],
        "figures": _figures(result),
        "environment": settings(result["environment"]),
    }
    return template.write_page(out / PAGE, "diagnosis.html", values)


def _verdict(result: Mapping[str, Any]) -> str:
    row = result["rows"][-1]
    where = f"{'the ' if row['layer'] == 0 else ''}{layer_name(row['layer'])}"
    text = f"At {where}, a window's tokens spread over {number(row['erank'])} directions (eRank)"
    if "diff_erank" in row:
        text += f", {number(row['reference']['erank'])} in the reference: a Diff-eRank of {number(row['diff_erank'])}"
    return f"{text}. All tokens together have an effective rank of {number(row['effective_rank'])}."


def _table(result: Mapping[str, Any]) -> list[list[str]]:
    """The numbers of all layers as text; the first row is the header."""
    compared = result["reference"] is not None
    table = [["layer", *MEASURES.values(), *(["reference eRank", "Diff-eRank"] if compared else [])]]
    for row in result["rows"]:
        values = [row.get(key) for key in MEASURES]  # a result of an earlier version has fewer
        values += [row["reference"]["erank"], row["diff_erank"]] if compared else []
        cells = (ABSENT if value is None else number(value) for value in values)
        table.append([layer_name(row["layer"]), *cells])
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
        "normalised_matrix_entropy": "The matrix entropy over the logarithm of its bound, the smaller of the width and "
        "of the number of tokens less one: 1 where every direction carries as much.",
        "token_entropy": "Entropy, in nats, of a window's centred tokens of length one, mean over windows: the "
        "logarithm of the eRank.",
        "normalised_token_entropy": "The token entropy over the logarithm of its bound in each window, as in Skean et "
        "al., ICML 2025.",
        "curvature": "Mean angle, in radians, between successive steps from token to token (Hosseini and Fedorenko, "
        "NeurIPS 2023): 0 on a line, about 2.1 for tokens that have nothing to do with each other.",
        "dime": "DiME (Skean et al., 2023), in nats, of the means of the first and the second half of each window: "
        "what they share beyond what halves of different windows share.",
        "lidar": "LiDAR (Thilak et al., ICLR 2024) of the same means: directions in which windows differ more than the "
        "halves of one.",
    }
    layers = np.array([row["layer"] for row in rows])
    figures = []
    for key, title in MEASURES.items():
        if any(row.get(key) is None for row in rows):
            continue
        curves = [Curve("model", layers, np.array([row[key] for row in rows], np.float64))]
        if compared and all(row["reference"].get(key) is not None for row in rows):
            reference = np.array([row["reference"][key] for row in rows], np.float64)
            curves.append(Curve("reference", layers, reference))
        figures.append(_over_layers(key, title, captions[key], curves))
    if compared:
        caption = (
            "Diff-eRank: eRank of the reference minus that of the model; above zero where training removed directions."
        )
        difference = np.array([row["diff_erank"] for row in rows], np.float64)
        curve = Curve("reference − model", layers, difference)
        figures.append(_over_layers("diff_erank", "Diff-eRank", caption, [curve]))
    return [figure for figure in figures if figure is not None]


def _over_layers(name: str, title: str, caption: str, curves: list[Curve]) -> Figurine | None:
    heading = title if title.startswith("eRank") else title[0].upper() + title[1:]
    panel = Panel(title, curves)
    return stacked(
        name, heading, [panel], caption, axis="layer, 0: embeddings",
        point=lambda layer, value: f"{number(value)} at {layer_name(int(layer))}",
    )  # fmt: skip
