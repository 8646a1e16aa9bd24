"""Penn-Fudan as COCO annotations, on drawn images and on the real ones, and the experiment from end to end."""

import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.experiments import detection_small, pennfudan
from matrix_ssl.errors import ConfigError, DataError


def archive(path: Path, *, count: int, skip: str = "") -> Path:
    """A tar file of images with one and two rectangles, of ids that touch."""
    draw = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            mask = np.zeros((56, 48), np.uint8)
            mask[8:40, 6:20] = 1
            mask[12:50, 20:40] = 2 * (number % 2)
            image = (60 + 80 * mask[..., None] + draw.integers(0, 20, (56, 48, 3))).astype(np.uint8)
            for name, array in ((f"images/P{number:02}.jpg", image), (f"masks/P{number:02}.png", mask)):
                if name != skip:
                    stream = io.BytesIO()
                    Image.fromarray(array).save(stream, "JPEG" if name.endswith("jpg") else "PNG")
                    member = tarfile.TarInfo(name)
                    member.size = stream.tell()
                    stream.seek(0)
                    tar.addfile(member, stream)
    return path


class TestConversion:
    def test_run_lengths_are_those_of_pycocotools(self) -> None:
        tools = pytest.importorskip("pycocotools.mask")
        for seed in range(5):
            mask = np.random.default_rng(seed).random((7, 5)) < 0.4
            mask[0, 0] = seed % 2
            made = pennfudan.annotation(mask)
            coded = tools.frPyObjects(made["segmentation"], 7, 5)
            assert coded == tools.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert int(tools.area(coded)) == made["area"] and tools.toBbox(coded).tolist() == made["bbox"]

    def test_files(self, tmp_path: Path) -> None:
        results = pennfudan.convert(archive(tmp_path / "p.tar", count=6), tmp_path / "out", training=4)
        assert [len(results[split]["images"]) for split in ("train", "val")] == [4, 2]
        names = {image["file_name"] for result in results.values() for image in result["images"]}
        assert names == {path.name for path in (tmp_path / "out" / "images").iterdir()} and len(names) == 6
        assert json.loads((tmp_path / "out" / "train.json").read_text()) == results["train"]
        each = [a for result in results.values() for a in result["annotations"]]
        assert len(each) == 9 and {tuple(a["bbox"]) for a in each} >= {(6, 8, 14, 32), (20, 12, 20, 38)}

    def test_mistakes(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"expected more than 120 files images/NAME\.jpg, it has 3"):
            pennfudan.convert(archive(tmp_path / "p.tar", count=3), tmp_path / "out")
        with pytest.raises(DataError, match=r"masks/P01\.png is missing"):
            pennfudan.convert(archive(tmp_path / "q.tar", count=3, skip="masks/P01.png"), tmp_path / "o", training=1)
        (tmp_path / "no.tar").write_text("no")
        with pytest.raises(DataError, match="cannot be read as a tar file"):
            pennfudan.convert(tmp_path / "no.tar", tmp_path / "out")

    def test_the_real_ones(self, tmp_path: Path) -> None:
        place = Path(os.environ.get("MATRIX_SSL_DATA", "absent")) / "pennfudan" / "pennfudan.tar"
        if not place.exists():
            pytest.skip("MATRIX_SSL_DATA has no pennfudan/pennfudan.tar")
        results = pennfudan.convert(place, tmp_path)
        assert [len(results[split]["images"]) for split in ("train", "val")] == [120, 50]
        assert sum(len(result["annotations"]) for result in results.values()) == 423


def test_the_table_pairs_seeds_with_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {
        ("random", ""): [0.40, 0.44, 0.42],
        ("cifar10", "simclr"): [0.43, 0.45, 0.48],
        ("imagenette", "mec"): [0.5],
    }
    rows = [
        {"recipe": recipe, "method": method, "seed": seed, "box_AP50": value, "mask_AP50": value if method else None}
        for (recipe, method), values in scores.items()
        for seed, value in enumerate(values)
    ]
    detection_small.show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert any("random" in line and "42.0 ± 2.0" in line and "0.0 ± 0.0" in line for line in lines)
    # differences 3, 1, 6: mean 3.33, sd 2.52, times 4.303 / sqrt(3)
    assert any("simclr" in line and "45.3 ± 2.5" in line and "+3.3 [-2.9, +9.6]" in line for line in lines)
    assert any("mec" in line and " 50.0 " in line and " +10.0 " in line and "+50.0" in line for line in lines)


@pytest.mark.slow
def test_from_pre_training_to_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")
    pennfudan.convert(archive(tmp_path / "p.tar", count=6), tmp_path / "coco", training=4)
    words = ["--images", str(tmp_path / "coco"), "--state", str(tmp_path / "state"), "--device", "cpu", "--seeds", "1"]
    words += ["--recipes", "images_small", "--methods", "simclr"]
    small = {"data.source": str(tmp_path / "coco" / "images"), "data.image_size": "32", "batch_size": "4",
             "epochs": "1", "method.hidden_dim": "8", "method.output_dim": "8", "data.workers": "0"}  # fmt: skip
    detect = {"epochs": "1", "train_sizes": "48", "test_size": "48", "precise_bn": "0", "bootstrap": "0",
              "anchors": "8", "regions": "8"}  # fmt: skip
    for option, settings in (("--set", small), ("--detect-set", detect)):
        words += [word for key, value in settings.items() for word in (option, f"{key}={value}")]
    monkeypatch.setattr(sys, "argv", ["detection_small", *words])
    detection_small.main()
    place = tmp_path / "state" / "rows.json"
    rows = json.loads(place.read_text())["rows"]
    assert [(row["recipe"], row["method"], row["seed"]) for row in rows] == [
        ("random", "", 0), ("images_small", "simclr", 0),
    ]  # fmt: skip
    assert all(0 <= (row[name] or 0) <= 1 for row in rows for name in ("box_AP50", "mask_AP50"))
    assert rows[0]["encoder"]["sha256"] != rows[1]["encoder"]["sha256"]

    kept = json.loads(place.read_text())
    kept["rows"].pop()  # stopped before the second row was written: its detector is complete
    place.write_text(json.dumps(kept))
    monkeypatch.setattr(detection_small.detection, "run", None)
    detection_small.main()
    assert json.loads(place.read_text())["rows"] == rows
    monkeypatch.setattr(sys, "argv", ["detection_small", *words, "--detect-set", "epochs=2"])
    with pytest.raises(ConfigError, match="begun with different settings"):
        detection_small.main()
