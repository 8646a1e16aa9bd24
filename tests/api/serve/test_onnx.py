"""An encoder in an ONNX file: without torch, with the features of PyTorch, and what files of others end in."""

import importlib.metadata
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from starlette.testclient import TestClient
from torch.nn import functional as F

from matrix_ssl.api.serve import create_app, open_index, open_served
from matrix_ssl.data.files.squares import centre_box
from matrix_ssl.data.views.augment import crop
from matrix_ssl.encoder.exporting import export
from matrix_ssl.errors import CheckpointError, ConfigError, DataError
from tests.support.encoder_runs import make_run
from tests.support.served import SETTINGS, SIZE, encoded, pixels, write_onnx

# first everything that the container of docker/serve.Dockerfile does not install cannot be imported, then torch
WITHOUT_TORCH = """
import json, runpy, sys
MISSING = set(json.loads(sys.argv[-1]))
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_installed(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in MISSING else find(name, path, target)
PathFinder.find_spec = classmethod(find_installed)
"""
ASKED = """
places = sys.argv[1:-1]
sys.argv = ["matrix-ssl", "serve", places[0], "--index", places[1], "--check"]
try:
    runpy.run_module("matrix_ssl", run_name="__main__")
except SystemExit as end:
    assert not end.code
MISSING = {"torch", "torchvision"}
from starlette.testclient import TestClient
from matrix_ssl.api.serve import create_app, open_index, open_served
encoder = open_served(places[0])
index = open_index(encoder, places[1]), open_index(encoder, data=places[2], quiet=True)
with TestClient(create_app(encoder, index=index[0])) as client:
    content = open(places[3], "rb").read()
    answers = [client.post(path, content=content).json() for path in ("/embed", "/search")]
assert not MISSING & set(sys.modules)
print(json.dumps([*answers, index[1].units.tolist()]), file=sys.stderr)
"""


def normal(name):
    """The name of a package, as indexes compare it."""
    return name.lower().replace("_", "-")


def in_container():
    """The packages of the container: those of its file, and what these require."""
    text = (Path(__file__).parents[3] / "docker" / "serve.Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^RUN pip install .*constraints\.txt +(.*)$", text, re.MULTILINE)
    packages, left = set(), line.split()
    while left:
        name = normal(left.pop())
        if name not in packages:
            packages.add(name)
            each = map(Requirement, importlib.metadata.requires(name) or ())
            left += [one.name for one in each if one.marker is None or one.marker.evaluate({"extra": ""})]
    return packages


def test_needs_no_torch(tmp_path):
    file = write_onnx(tmp_path / "small.onnx")
    for seed in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{seed}.png").write_bytes(encoded(pixels(seed)))
    encoder = open_served(file)
    squares = np.stack([encoder.square(encoded(pixels(seed)), "x") for seed in range(3)])
    features = encoder.features(squares)
    np.savez(tmp_path / "f.npz", features=features, where=np.array(list("abc")), encoder_digest=np.array("abc"))
    places = [str(tmp_path / name) for name in ("small.onnx", "f.npz", "photos", "photos/1.png")]
    installed = in_container() | {"matrix-ssl"}
    distributions = importlib.metadata.packages_distributions()
    missing = [module for module, names in distributions.items() if installed.isdisjoint(map(normal, names))]
    assert {"torch", "scipy", "safetensors"} <= set(missing) and not {"numpy", "PIL", "rich"} & set(missing)
    words = [sys.executable, "-c", f"{WITHOUT_TORCH}\n{ASKED}", *places, json.dumps(missing)]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    embedded, near, of_folder = json.loads(ended.stderr.splitlines()[-1])
    np.testing.assert_allclose(embedded["features"], features[1:2], rtol=1e-6)
    np.testing.assert_allclose(of_folder, features / np.linalg.norm(features, axis=1, keepdims=True), rtol=1e-5)
    assert near["neighbours"][0][0] == {"rank": 1, "path": "b", "similarity": 1.0}
    info = json.loads(ended.stdout)
    assert (info["encoder"], info["width"], info["index"]["images"]) == ("small", 5, 3)
    assert info["runtime"].startswith("onnxruntime")


def test_gives_the_features_of_its_graph(tmp_path):
    encoder = open_served(write_onnx(tmp_path / "small.onnx"))
    image = pixels(5, 50, 40)
    square = crop(torch.from_numpy(image.transpose(2, 0, 1).copy()), centre_box(0.875, 50, 40), SIZE) / 255
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32))
    expected = F.conv2d(square[None], weights, stride=2).relu().mean((2, 3)).numpy()
    with TestClient(create_app(encoder)) as client:
        answer = client.post("/embed", content=encoded(image), headers={"Accept": "application/x-npy"})
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected, rtol=0, atol=1e-4)


def test_squeezes_images_if_the_encoder_takes_them_so(tmp_path):
    encoder = open_served(write_onnx(tmp_path / "small.onnx", crop_mode='"squash"'))
    image = pixels(5, 50, 40)
    expected = crop(torch.from_numpy(image.transpose(2, 0, 1).copy()), centre_box(0.875, 50, 40, mode="squash"), SIZE)
    assert np.abs(encoder.square(encoded(image), "x").astype(int) - expected.numpy()).max() <= 1
    with TestClient(create_app(encoder)) as client:
        assert client.get("/info").json()["crop_mode"] == "squash"


@pytest.mark.slow
def test_of_an_export_gives_the_features_of_pytorch(tmp_path):
    run, _ = make_run(tmp_path / "r", *SETTINGS)
    export(run, tmp_path / "e.onnx", form="onnx")
    ours, exported = open_served(run, device="cpu"), open_served(tmp_path / "e.onnx")
    assert (exported.digest, exported.preparation, exported.name) == (ours.digest, ours.preparation, ours.name)
    files = [encoded(pixels(seed, 30 + seed, 41)) for seed in range(20)]
    features = [one.features(np.stack([one.square(file, "x") for file in files])) for one in (ours, exported)]
    np.testing.assert_allclose(features[1], features[0], rtol=0, atol=1e-4)
    other, _ = make_run(tmp_path / "other", *SETTINGS, "seed=1")
    np.savez(tmp_path / "f.npz", features=features[0], encoder_digest=np.array(open_served(other).digest))
    with pytest.raises(DataError, match="different encoder"):
        open_index(exported, tmp_path / "f.npz")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"mean": None, "std": None}, "does not say how images are prepared: mean, std missing; write it with"),
     ({"mean": "nothing"}, "makes no sense"), ({"mean": [0.5], "std": [0.1, 0.2]}, "makes no sense"),
     ({"image_size": 1e9}, "makes no sense"), ({"crop_fraction": 7}, "makes no sense"),
     ({"value_range": [1]}, "makes no sense"), ({"crop_mode": ["squash"]}, "makes no sense"),
     ({"std": "[" * 999}, "makes no sense"),
     ({"image_size": SIZE + 1}, rf"does not compute features \(n, k\) from pixels \(n, 3, {SIZE + 1}, {SIZE + 1}\)")],
)  # fmt: skip
def test_without_what_the_service_needs_is_refused(tmp_path, changes, reason):
    with pytest.raises(CheckpointError, match=reason):
        open_served(write_onnx(tmp_path / "small.onnx", **changes))


def test_that_is_none_is_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07\x12nonsense")
    for name, reason in (("bad", "no ONNX file that onnxruntime can run"), ("absent", "cannot be read: No such file")):
        with pytest.raises(CheckpointError, match=reason):
            open_served(tmp_path / f"{name}.onnx")
    file = write_onnx(tmp_path / "small.onnx")
    with pytest.raises(ConfigError, match="--device mps: the installed onnxruntime does not compute on it"):
        open_served(file, device="mps")
    with pytest.raises(ConfigError, match="holds the student: export it again with --weights teacher"):
        open_served(file, weights="teacher")
