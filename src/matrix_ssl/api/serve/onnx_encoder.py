"""An encoder for the service from an ONNX file of ``matrix-ssl export``; needs only onnxruntime, NumPy and Pillow."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.api.serve.served import Preparation, ServedEncoder
from matrix_ssl.config.reading import READING, CropMode, Reading
from matrix_ssl.config.untrusted import MOST_TEXT, parse_json, read_file, why
from matrix_ssl.data.files.decoding import decode_pixels
from matrix_ssl.data.files.squares import central_square
from matrix_ssl.errors import CheckpointError, ConfigError, import_extra, is_out_of_memory

_NEEDED = ("image_size", "crop_fraction", "mean", "std")
_PROVIDERS = {"auto": "CPUExecutionProvider", "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_SILENT = 4  # log level: fatal errors only, since the log writes what the file contains to standard error


class OnnxEncoder(ServedEncoder):
    """The graph of an ONNX file, which maps ``pixels`` (n, c, s, s) in [0, 1] to ``features`` (n, k).

    How to prepare the images is read from the metadata of the file, where ``export`` writes it.

    Args:
        path: the file.
        device: ``cpu`` (here the same as ``auto``), or ``cuda``, which needs the package onnxruntime-gpu.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file is missing or damaged, or was not written by ``matrix-ssl export``.
        ConfigError: onnxruntime does not have this device, or the encoder takes images that no file can hold.
    """

    def __init__(self, path: Path, *, device: str = "auto"):
        runtime = import_extra("onnxruntime", extra="serve")
        provider = _PROVIDERS.get(device, "")
        if provider not in runtime.get_available_providers():
            raise ConfigError(f"--device {device}: the installed onnxruntime does not compute on it; use --device cpu.")
        try:
            content = read_file(path, most=MOST_TEXT)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {why(error)}.") from None
        options = runtime.SessionOptions()
        options.log_severity_level = _SILENT
        threads = os.environ.get("OMP_NUM_THREADS", "")  # onnxruntime ignores it
        options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
        try:
            self._session = runtime.InferenceSession(content, options, providers=[provider])
        except Exception as error:  # one of many types, which onnxruntime does not name
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"{path} is no ONNX file that onnxruntime can run ({reason}).") from None
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.preparation = _preparation(path, metadata)
        self.name, self.weights = metadata.get("architecture", path.stem), metadata.get("weights", "student")
        self.digest = metadata.get("encoder_digest", "")
        # the content includes the metadata on how images are prepared
        self.sha256 = self.identity = hashlib.sha256(content).hexdigest()
        self.runtime = f"onnxruntime {runtime.__version__} on {provider.removesuffix('ExecutionProvider')}"
        try:
            self.width = self.features(self.zeros(1)).shape[1]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"{path} does not compute features (n, k) from pixels (n, {len(self.preparation.mean)}, "
                f"{self.preparation.image_size}, {self.preparation.image_size}) ({reason}); {_REMEDY}"
            ) from None

    def square(self, content: bytes, where: str) -> NDArray[Any]:
        """The square as ``matrix-ssl embed`` crops it, but for the rounding that ``data.files.squares`` describes."""
        prepared = self.preparation
        image = decode_pixels(content, where, reading=prepared.reading)
        return central_square(image, fraction=prepared.crop_fraction, size=prepared.image_size, mode=prepared.crop_mode)

    def features(self, squares: NDArray[Any]) -> NDArray[np.float32]:
        """Runs the graph, which normalises the pixels itself."""
        unit = squares if squares.dtype == np.float32 else squares.astype(np.float32) / np.float32(255)
        (features,) = self._session.run(["features"], {"pixels": unit})
        return np.asarray(features, dtype=np.float32).reshape(len(squares), -1)


_REMEDY = "write it with: matrix-ssl export RUN --format onnx."


def _preparation(path: Path, metadata: dict[str, str]) -> Preparation:
    missing = [name for name in _NEEDED if name not in metadata]
    if missing:
        raise CheckpointError(f"{path} does not say how images are prepared: {', '.join(missing)} missing; {_REMEDY}")
    try:
        names = (*_NEEDED, *READING, "crop_mode")
        values = {name: parse_json(metadata[name]) for name in names if name in metadata}
        reading = {name: values[name] for name in READING if name in values}
        if reading.get("value_range") is not None:
            low, high = map(float, reading["value_range"])
            reading["value_range"] = low, high
        size, fraction = values["image_size"], float(values["crop_fraction"])
        mean, std = (tuple(map(float, values[name])) for name in ("mean", "std"))
        mode = values.get("crop_mode", "centre")
        if mode not in get_args(CropMode) or not (
            isinstance(size, int) and size > 0 and 0 < fraction <= 1 and len(mean) == len(std) > 0
        ):
            raise ValueError
    except (ValueError, TypeError):
        said = json.dumps({name: metadata[name] for name in _NEEDED})
        raise CheckpointError(f"{path} says of its images what makes no sense, {said}; {_REMEDY}") from None
    return Preparation(size, fraction, mean, std, Reading(**reading), mode)
