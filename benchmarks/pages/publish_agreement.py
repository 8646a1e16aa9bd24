"""Writes the agreement with other implementations into the pages of the toolbox, between their markers.

python -m benchmarks.pages.publish_agreement      (reads benchmarks/results/agreement.json)
"""

from typing import Any

from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages.tables import fill, table
from matrix_ssl.runs.files import read_json

PAGES = {
    "entropies": "kernels.md", "information": "information.md", "comparison": "comparing.md", "ranks": "ranks.md",
    "divergences": "divergences.md", "maximum-entropy": "maximum-entropy.md",
}  # fmt: skip


def main() -> None:
    results = read_json(RESULTS / "agreement.json")
    for family, page in PAGES.items():
        fill(ROOT / "docs" / page, family, agreement(results, family))


def agreement(results: dict[str, Any], family: str) -> str:
    """The values of one family of quantities, here and there."""
    where = results["environment"]
    names = ("vendi-score", "reptrix", "torch-cka", "ckatorch")
    packages = ", ".join(f"{name} {where[name]}" for name in names if name in where)
    rows = [
        [row["quantity"], f"{row['other']}, {row['note']}", f"{row['ours']:.6f}", *_theirs(row)]
        for row in results["rows"]
        if row["family"] == family
    ]
    head = table(["quantity", "other implementation", "here", "there", "difference"], rows)
    n, d = results["shapes"][family]
    return (
        f"Two representations (float64) of the same {n} samples, each with {d} columns, half of which are shared.\n"
        f"Gaussian kernels have width 4. Measured at commit {where['commit']} with {packages}.\n"
        f"The formulas of repitl are from its commit fd0da54, those of MEC from 35045dc.\n\n{head}"
    )


def _theirs(row: dict[str, Any]) -> list[str]:
    return ["", ""] if row["theirs"] is None else [f"{row['theirs']:.6f}", f"{row['difference']:.0e}"]


if __name__ == "__main__":
    main()
