"""The README's first table: the files that its commands get, a row that they make, and what the pages show of it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.experiments import first_results
from benchmarks.harness import RESULTS, ROOT
from matrix_ssl.runs.files import read_json


def test_files_of_the_shard_are_its_bytes_and_one_is_no_image(tmp_path: Path) -> None:
    streams = []
    for shade in (0, 120, 240):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "JPEG")
        streams.append(stream.getvalue())
    np.savez(
        tmp_path / "shard.npz",
        jpeg=np.frombuffer(b"".join(streams), np.uint8),
        offs=np.cumsum([0, *map(len, streams)]),
        y=np.array([1, 0, 1]),
        classes=np.array(["tench", "gas pump"]),
    )
    first_results.write_files(tmp_path / "shard.npz", tmp_path / "photos")
    found = {str(path.relative_to(tmp_path / "photos")) for path in (tmp_path / "photos").rglob("*.jpg")}
    assert found == {"gas_pump/00000.jpg", "tench/00001.jpg", "gas_pump/00002.jpg", "gas_pump/notes.jpg"}
    assert (tmp_path / "photos" / "tench" / "00001.jpg").read_bytes() == streams[1]


def test_a_row_is_what_the_commands_measured(tmp_path: Path) -> None:
    case = first_results.CASES[0]
    row = first_results.measure(case, 3, tmp_path, ["--set", "epochs=1", "--data-root", str(tmp_path)])
    assert (row["case"], row["seed"], row["summary"]["epochs"]) == ("digits", 3, 1)
    assert set(row["accuracy"]) == {"this encoder", "raw pixels", "untrained network"}
    assert row["accuracy"]["raw pixels"]["linear"] == pytest.approx(0.961, abs=0.001)  # of the digits, whatever trains
    assert min(row["cpu_seconds"].values()) > 0
    assert str(tmp_path) not in repr(row)


def rows(case: str, *accuracies: float) -> list[dict[str, Any]]:
    keys = ("low_shot_1", "low_shot_5", "low_shot_10", "linear", "knn_1", "knn_20")
    return [
        {
            "case": case,
            "seed": seed,
            "accuracy": {
                "this encoder": dict.fromkeys(keys, accuracy),
                "raw pixels": dict.fromkeys(keys, 0.5),
                "untrained network": dict.fromkeys(keys, 0.25),
            },
            "cpu_seconds": {"pretrain": 60.0, "evaluate": 120.0},
        }
        for seed, accuracy in enumerate(accuracies)
    ]


def test_tables_have_mean_and_deviation_of_the_seeds(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name, markers in (("README.md", ["results"]), ("docs/results.md", ["digits", "photos"])):
        (tmp_path / name).write_text("".join(f"<!-- {marker}:begin -->\n<!-- {marker}:end -->\n" for marker in markers))
    measured = rows("digits", 0.7, 0.8, 0.9) + rows("photos", 0.6) + rows("photos, matrix_ssl", 0.4)
    first_results.write_tables(measured, tmp_path)
    readme, page = (tmp_path / "README.md").read_text(), (tmp_path / "docs/results.md").read_text()
    cells = "80.0 ± 10.0 | 80.0 ± 10.0 | 80.0 ± 10.0 | 50.0 | 25.0 | 3 min"
    assert f"| Handwritten digits, 8 px | `make demo` | {cells} |" in readme
    assert "| The same with the paper's method | the same with `--method matrix_ssl` | 40.0 |" in readme
    assert page.count("| this encoder |") == 2 and page.count("| raw pixels | 50.0 |") == 2
    assert "| with `--method matrix_ssl` | 40.0 |" in page.partition("<!-- photos:begin -->")[2]


def test_pages_show_the_rows_that_were_measured(tmp_path: Path) -> None:
    measured = read_json(RESULTS / first_results.RESULT)["rows"]
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/results.md"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    first_results.write_tables(measured, tmp_path)
    for name in ("README.md", "docs/results.md"):
        assert (tmp_path / name).read_text("utf-8") == (ROOT / name).read_text("utf-8")
