"""No command writes its results among the images that it reads: each refuses before the work."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from matrix_ssl.api import diagnosing, measuring, packing
from matrix_ssl.cli.detect import detect
from matrix_ssl.cli.evaluate import embed
from matrix_ssl.encoder.exporting import export
from matrix_ssl.encoder.importing import as_run
from matrix_ssl.errors import DataError
from tests.support.runs import make_images

WHERE = "random/tiny_resnet"


def _export(data: Path, out: Path) -> None:
    run, _ = as_run(WHERE, out=data.parent / "r", say=lambda text: None)
    values = json.loads((run / "config.json").read_text())
    values["data"]["source"] = str(data)
    (run / "config.json").write_text(json.dumps(values))
    export(run, out / "encoder.safetensors", form="safetensors")


def _detect(data: Path, out: Path) -> None:
    words = [word for split in ("train", "val") for what, value in (("images", data), ("annotations", data / "a.json"))
             for word in (f"--{split}-{what}", str(value))]  # fmt: skip
    detect.main([*words, "--encoder", WHERE, "--out", str(out)], standalone_mode=False)


COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "pack": lambda data, out: packing.pack(str(data), out),
    "measure": lambda data, out: measuring.measure(WHERE, str(data), out=out),
    "diagnose": lambda data, out: diagnosing.diagnose(WHERE, str(data), out=out),
    "embed": lambda data, out: embed.main(
        [WHERE, "--data", str(data), "--out", str(out / "f.npz")], standalone_mode=False
    ),
    "export": _export,
    "detect": _detect,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_among_the_images_is_refused(tmp_path: Path, command: str) -> None:
    data = tmp_path / "photos"
    make_images(data, 2)
    before = sorted(data.rglob("*"))
    with pytest.raises(DataError, match=r"is inside the images' folder .*: choose another place for it\.$"):
        COMMANDS[command](data, data / "out")
    assert sorted(data.rglob("*")) == before
