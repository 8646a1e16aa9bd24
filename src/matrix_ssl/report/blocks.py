"""The result of diagnosing an image encoder: for a terminal, and as a page that opens offline. Uses no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from matrix_ssl.report import template
from matrix_ssl.report.figures import Curve, Figurine, Panel, shortened, stacked
from matrix_ssl.report.formats import ABSENT, Cell, number, settings, whole
from matrix_ssl.report.similarity import heat_maps, matrix_table
from matrix_ssl.report.terminal import empty_table

RESULT, PAGE = "diagnose.json", "diagnose.html"
MEASURES = {
    "matrix_entropy": ("matrix entropy", "Entropy, in nats, of the covariance of the images' mean outputs, scaled to "
                       "trace one: 0 where they lie on a line."),
    "normalised_matrix_entropy": ("normalised matrix entropy", "The matrix entropy over the logarithm of its bound, "
                                  "the smaller of the width and of the images less one (Skean et al., ICML 2025)."),
    "effective_rank": ("effective rank", "The exponential of the matrix entropy: between 1 and the width."),
    "participation_ratio": ("participation ratio", "(Σ λ)² / Σ λ² of the same covariance: strong directions decide."),
    "rank_me": ("RankMe", "The exponential of the entropy of the singular values of the mean outputs, not centred: "
                "weak directions count."),
    "token_entropy": ("token entropy", "Entropy, in nats, of the cosine kernel of the positions of an image, mean over "
                      "images: 0 where all positions point the same way. Absent behind a pooling."),
    "normalised_token_entropy": ("normalised token entropy", "The token entropy over the logarithm of its bound, the "
                                 "smaller of the width and the number of positions."),
    "lidar": ("LiDAR", "Directions in which images differ more than two random views of one image do, of outputs "
              "scaled to a mean variance of one (Thilak et al., ICLR 2024)."),
    "dime": ("DiME", "What the Gaussian kernels of two random views share beyond what views of different images share, "
             "in nats, of up to 256 images (Skean et al., 2023)."),
}  # fmt: skip

_ON_THE_PAGE = (
    "width", "normalised matrix entropy", "participation ratio", "RankMe", "normalised token entropy", "DiME",
)  # fmt: skip


def terminal(result: Mapping[str, Any]) -> list[Table]:
    """One row per block, for a terminal of 80 columns, without what only the page has; and CKA if there is a matrix."""
    title = f"{whole(result['images'])} images of {result['data']}"
    table = empty_table(title)
    names, *rows = _table(result)
    shown = [i for i, name in enumerate(names) if name not in _ON_THE_PAGE]
    for i in shown:
        table.add_column(names[i], justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*(row[i] if i else shortened(row[i]) for i in shown))
    if "similarity" not in result:
        return [table]
    pair = result["similarity"]["tables"][0]
    title = f"Linear CKA of {shortened(pair['rows'])}, rows, with {shortened(pair['columns'])}, columns"
    return [table, matrix_table(pair["linear_cka"], pair["row_blocks"], pair["column_blocks"], title)]


def write_page(out: Path, result: Mapping[str, Any]) -> Path:
    """Writes ``diagnose.html`` from the contents of ``diagnose.json``; the same result gives the same bytes."""
    names, *rows = _table(result)
    last = result["rows"][-1]
    text = (
        f"The features of {whole(result['images'])} images have an effective rank of "
        f"{number(last['effective_rank'])} in {whole(last['width'])} dimensions, and a LiDAR of {number(last['lidar'])}"
    )
    if result["reference"]:
        theirs = last["reference"]
        text += f"; in the reference {number(theirs['effective_rank'])} and {number(theirs['lidar'])}"
    best = max(result["rows"], key=lambda row: row["lidar"])
    values = {
        "title": f"Blocks of {result['encoder']} – matrix-ssl",
        "heading": "Block by block",
        "kind": result["encoder"],
        "verdict": [f"{text}.", f"LiDAR is highest at {best['block']}: {number(best['lidar'])}."],
        "notes": [],
        "facts": [
            ("Architecture", result["architecture"]),
            ("Reference", result["reference"] or "none"),
            ("Images", f"{whole(result['images'])} of {result['data']}"),
            ("Blocks", whole(len(rows))),
        ],
        "rows": [(row[0], "", list(map(Cell, names[1:], row[1:]))) for row in rows],
        "figures": _figures(result),
        "heat_maps": _heat_maps(result["similarity"]) if "similarity" in result else [],
        "similarity_note": _note(result["similarity"]) if "similarity" in result else "",
        "environment": settings(result["environment"]),
    }
    return template.write_page(out / PAGE, "blocks.html", values)


def _table(result: Mapping[str, Any]) -> list[list[str]]:
    """The numbers of all blocks as text; the first row is the header."""
    compared = result["reference"] is not None
    extra = ["reference effective rank", "reference LiDAR"] if compared else []
    table = [["block", "width", *(name for name, _ in MEASURES.values()), *extra]]
    for row in result["rows"]:
        values = [row.get(key) for key in MEASURES]  # a result of an earlier version has fewer
        values += [row["reference"]["effective_rank"], row["reference"]["lidar"]] if compared else []
        cells = (ABSENT if value is None else number(value) for value in values)
        table.append([row["block"], whole(row["width"]), *cells])
    return table


def _heat_maps(similarity: Mapping[str, Any]) -> list[Figurine]:
    """Every block-by-block matrix: of the two networks with each other, and of each with itself."""
    figures = []
    for i, table in enumerate(similarity["tables"]):
        title = table["rows"] if table["rows"] == table["columns"] else f"{table['rows']} with {table['columns']}"
        figures += heat_maps(table, table["row_blocks"], table["column_blocks"], name=f"blocks-{i}", title=title)
    return figures


def _note(similarity: Mapping[str, Any]) -> str:
    return (
        f"The outputs of blocks for the same images, averaged over their positions. CKA is that of "
        f"{whole(similarity['images'])} images, in random batches; RSA and matrix KL are those of "
        f"{whole(similarity['sample'])}."
    )


def _figures(result: Mapping[str, Any]) -> list[Figurine]:
    rows = result["rows"]
    figures = []
    for key, (title, caption) in MEASURES.items():
        curves = []
        for label, chosen in (("encoder", rows), ("reference", [row.get("reference") or {} for row in rows])):
            points = [(i, one[key]) for i, one in enumerate(chosen, start=1) if one.get(key) is not None]
            if points:
                x, y = zip(*points, strict=True)
                curves.append(Curve(label, np.array(x), np.array(y, np.float64)))
        figures.append(
            stacked(
                key, title[0].upper() + title[1:], [Panel(title, curves)], caption, axis="block",
                point=lambda x, value: f"{number(value)} at {rows[round(x) - 1]['block']}",
            )
        )  # fmt: skip
    return [figure for figure in figures if figure is not None]
