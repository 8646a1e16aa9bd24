"""The tables of docs/llm-loss.md, from ``llm_loss.json`` and ``llm_head.json``.

    python -m benchmarks.pages.llm_loss_page

Writes what stands between the markers ``time``, ``memory``, ``errors`` and ``head``.
"""

from typing import Any

from rich.console import Console

from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages.tables import fill, table
from benchmarks.speed.llm_loss import tables
from matrix_ssl.runs.files import read_json

Row = dict[str, Any]


def main() -> None:
    page = ROOT / "docs" / "llm-loss.md"
    for name, text in zip(("time", "memory", "errors"), tables(read_json(RESULTS / "llm_loss.json")), strict=True):
        fill(page, name, text)
    if (path := RESULTS / "llm_head.json").exists():
        fill(page, "head", head_section(read_json(path)))
    Console().print("written: docs/llm-loss.md", markup=False)


def head_section(result: Row) -> str:
    """Times and memory of the closed form beside a plain and a chunked cross-entropy."""
    memory = {tuple(row[key] for key in ("vocabulary", "d", "positions")): row["mib"] for row in result["memory"]}
    lines = []
    for row in result["rows"]:
        size = tuple(row[key] for key in ("vocabulary", "d", "positions"))
        mib = [f"{memory[size][name]:.0f} MiB" for name in ("cross-entropy", "chunked", "closed")]
        lines.append([
            ", ".join(map(str, size)), row["labels"], f"{row['seconds']['cross-entropy']['median']:.2f} s",
            *(over(row["ratio"][name]) for name in ("chunked", "closed")), " / ".join(mib),
        ])  # fmt: skip
    e = result["environment"]
    head = ["vocabulary, d, positions", "labels", "cross-entropy", "chunked", "closed", "peak memory of the three"]
    return (
        f"{table(head, lines)}\nRatios: median (minimum to maximum) over rounds. Measured on an {e['processor']}, one "
        f"thread, float32, PyTorch {e['torch']}, commit {e['commit']}.\n"
    )


def over(values: dict[str, float]) -> str:
    """Median and range."""
    return f"{values['median']:.2f} ({values['least']:.2f} to {values['most']:.2f})"


if __name__ == "__main__":
    main()
