"""Writes the agreement with other implementations into the pages of the toolbox, between their markers.

python -m benchmarks.pages.publish_agreement      (reads benchmarks/results/agreement.json)
"""

from typing import Any

from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages.tables import fill, table
from matrix_ssl.runs.files import read_json

PAGES = {"entropies": "kernels.md", "information": "information.md", "comparison": "comparing.md"}


def main() -> None:
    results = read_json(RESULTS / "agreement.json")
    for family, page in PAGES.items():
        text = agreement(results, family)
        fill(ROOT / "docs" / page, family, text + times(results) if family == "comparison" else text)


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
    head = table(["quantity", "other", "here", "there", "difference"], rows)
    return (
        f"One pair of representations of 60 samples and 6 columns that share three, float64; a Gaussian kernel has the "
        f"width 4.\nMeasured at commit {where['commit']} with {packages};\nrepitl's formulas are of fd0da54.\n\n"
        f"{head}"
    )


def _theirs(row: dict[str, Any]) -> list[str]:
    return ["", ""] if row["theirs"] is None else [f"{row['theirs']:.6f}", f"{row['difference']:.0e}"]


def times(results: dict[str, Any]) -> str:
    """Seconds beside them."""
    rows = [
        [
            row["quantity"], f"{row['n']}, {row['d']}",
            *(f"{1e3 * row['seconds'][side]['median']:.3g}" for side in ("ours", "theirs")),
            f"{row['times_faster']['median']:.1f}",
        ]
        for row in results["timings"]
    ]  # fmt: skip
    head = ["quantity; the other", "n, d", "here, ms", "there, ms", "times faster"]
    return f"\nCPU milliseconds of one thread, float32, value alone:\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()
