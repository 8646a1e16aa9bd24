"""Encoders and images for tests of the service."""

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from matrix_ssl.api.serve.served import Preparation, ServedEncoder
from matrix_ssl.data.files.decoding import decode_pixels
from matrix_ssl.data.files.squares import central_square

SIZE = 16
PREPARATION = Preparation(SIZE, 0.875, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
SETTINGS = ("network.encoder=tiny_resnet", "network.width=8", f"data.image_size={SIZE}", "data.mean=0.5,0.4,0.3",
            "data.std=0.2,0.3,0.25")  # fmt: skip


class Means(ServedEncoder):
    """The mean of every channel; it counts its batches, and waits while ``may_go`` is not set."""

    name, weights, width, runtime, sha256, digest, identity = "means", "student", 3, "numpy", None, "", "means"

    def __init__(self) -> None:
        self.preparation = PREPARATION
        self.batches: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def square(self, content: bytes, where: str) -> NDArray[Any]:
        return central_square(decode_pixels(content, where), fraction=1.0, size=SIZE)

    def features(self, squares: NDArray[Any]) -> NDArray[np.float32]:
        assert self.may_go.wait(60)
        self.batches.append(len(squares))
        return squares.mean((2, 3), dtype=np.float32)


def pixels(seed: int, height: int = 20, width: int = 24) -> NDArray[np.uint8]:
    """Random pixels (h, w, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    """The file of an array or an image of Pillow."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def write_onnx(path: Path, **metadata: Any) -> Path:
    """An ONNX file with a small network and the metadata of an export; a value of None is left out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["h"], strides=[2, 2]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    values = {
        "architecture": "small", "weights": "student", "image_size": SIZE, "crop_fraction": 0.875,
        "mean": PREPARATION.mean, "std": PREPARATION.std, "encoder_digest": "abc", **metadata,
    }  # fmt: skip
    for name, value in values.items():
        if value is not None:
            model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, str(path))
    return path
