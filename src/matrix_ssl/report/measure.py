"""The result of ``matrix-ssl measure``: for a terminal, and as a page that opens offline. Uses no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from matrix_ssl.report import template
from matrix_ssl.report.formats import ABSENT, Cell, number, settings, whole
from matrix_ssl.report.run.figures import spectrum
from matrix_ssl.report.similarity import heat_maps, matrix_table
from matrix_ssl.report.terminal import empty_table

RESULT, PAGE = "measure.json", "measure.html"
_COMPARISONS = {
    "linear_cka": "linear CKA", "cca": "CCA", "svcca": "SVCCA", "pwcca": "PWCCA", "procrustes": "Procrustes distance",
    "rsa": "RSA", "mir": "MIR", "hdr": "HDR",
}  # fmt: skip
_CAPTION = (
    "Eigenvalues of the trace-one covariance of the features, in descending order, both axes logarithmic. The flatter "
    "the curve, the more directions the features use; a curve that drops steeply after a few eigenvalues means "
    "dimensional collapse."
)


def terminal(result: Mapping[str, Any]) -> list[Any]:
    """Tables and sentences for a terminal: one row per rank, one column per encoder."""
    features, headings = result["features"], result["meanings"]["ranks"]
    table = empty_table()
    table.add_column("")
    for one in features:
        table.add_column(f"{one['name']}\n{whole(one['samples'])} x {whole(one['width'])}", justify="right")
    for name in _names(result):
        cells = []
        for one in features:
            rank = one["ranks"].get(name)
            cells.append(ABSENT if rank is None else "\n".join([number(rank["value"]), *_spread(rank)]))
        table.add_row(headings[name]["heading"], *cells)
    tables = [table]
    if result["comparisons"]:
        table = empty_table()
        table.add_column("")
        for pair in result["comparisons"]:
            table.add_column(f"{pair['first']} –\n{pair['second']}", justify="right")
        for heading, *cells in zip(_COMPARISONS.values(), *map(_similarities, result["comparisons"]), strict=True):
            table.add_row(heading, *cells)
        tables.append(table)
    among = result.get("checkpoints") or {}
    if "linear_cka" in among:
        tables.append(matrix_table(among["linear_cka"], among["names"], among["names"], "Linear CKA of checkpoints"))
    return [*tables, _note(result), *_verdict(result)]


def write_page(out: Path, result: Mapping[str, Any]) -> Path:
    """Writes ``measure.html`` from the contents of ``measure.json``; the same result gives the same bytes."""
    features, meanings = result["features"], result["meanings"]
    rows = []
    for name in _names(result):
        meaning = meanings["ranks"][name]
        cells = []
        for one in features:
            rank = one["ranks"].get(name)
            cells.append(
                Cell(one["name"]) if rank is None else Cell(one["name"], number(rank["value"]), tuple(_spread(rank)))
            )
        rows.append((meaning["heading"], "", cells))
    explained = [["measure", "range", "meaning", "paper"]]
    explained += [[m["heading"], m["range"], m["meaning"], m["paper"]] for m in meanings["ranks"].values()]
    first = features[0]
    values = {
        "title": f"Measures of {first['name']} – matrix-ssl",
        "heading": "Features without labels",
        "kind": ", ".join(one["name"] for one in features),
        "verdict": _verdict(result) or [_sentence(first)],
        "notes": [(text, "") for text in (result["choice"] or {}).get("failures", [])],
        "facts": [
            ("Images", whole(first["samples"])),
            ("Width", ", ".join(dict.fromkeys(whole(one["width"]) for one in features))),
            ("Share of the mean in the squared length", f"{100 * first['mean_share']:.0f} %"),
            ("Extrapolated to", whole(result["population"]) or "nothing"),
        ],
        "rows": rows,
        "note": _note(result),
        "pairs": [
            (f"{pair['first']}, {pair['second']}", "", list(map(Cell, _COMPARISONS.values(), _similarities(pair))))
            for pair in result["comparisons"]
        ],
        "similarities": [(_COMPARISONS[name], text) for name, text in meanings["comparisons"].items()],
        "explained": explained,
        "heat_maps": heat_maps(among, among["names"], among["names"], name="checkpoints", title="checkpoints")
        if (among := result.get("checkpoints")) else [],
        "sample": whole(among["sample"]) if among else "",
        "figures": [
            spectrum([(one["name"], np.array(one["spectrum"])) for one in features if sum(one["spectrum"]) > 0],
                     caption=_CAPTION)
        ] if any(sum(one["spectrum"]) > 0 for one in features) else [],
        "environment": settings(result["environment"]),
    }  # fmt: skip
    return template.write_page(out / PAGE, "measure.html", values)


def _names(result: Mapping[str, Any]) -> list[str]:
    """The ranks that at least one encoder has."""
    return [name for name in result["meanings"]["ranks"] if any(name in one["ranks"] for one in result["features"])]


def _spread(rank: Mapping[str, Any]) -> list[str]:
    """The interval and the expectation of a rank, if there are any."""
    if "low" not in rank:
        return []
    lines = [f"{number(rank['low'])} to {number(rank['high'])}"]
    return lines + ([f"→ {number(rank['expected'])}"] if rank.get("expected") is not None else [])


def _similarities(pair: Mapping[str, Any]) -> list[str]:
    return [number(pair[name]) if name in pair else ABSENT for name in _COMPARISONS]


def _sentence(one: Mapping[str, Any]) -> str:
    ranks = one["ranks"]
    return (
        f"The features of {whole(one['samples'])} images have a RankMe of {number(ranks['rank_me']['value'])} and an "
        f"effective rank of {number(ranks['effective_rank']['value'])} in {whole(one['width'])} dimensions."
    )


def _verdict(result: Mapping[str, Any]) -> list[str]:
    """Which checkpoint the rule picks, if there are several."""
    choice = result["choice"]
    if choice is None:
        return []
    values = {one["name"]: one["ranks"][choice["rule"]]["value"] for one in result["features"]}
    first, second = choice["chosen"], choice["second"]
    rule = result["meanings"]["ranks"][choice["rule"]]["heading"]
    text = f"{rule} is highest at {first}: {number(values[first])}, against {number(values[second])} at {second}"
    return [
        f"{text}." if choice["distinct"] else
        f"{text}, which is inside its interval: the rule cannot tell the two apart."
    ]  # fmt: skip


def _note(result: Mapping[str, Any]) -> str:
    text = (
        "Below each value its 95 % interval: what different samples of as many images would give. A rank grows with "
        "the number of images; compare at one number only."
    )
    if population := result["population"]:
        text += f" After the arrow, what the growth lets expect of {whole(population)} images: an extrapolation."
    return text
