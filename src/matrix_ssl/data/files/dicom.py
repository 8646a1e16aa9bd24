"""Images in DICOM files, read by pydicom (the extra ``dicom``): stored numbers become values, and values grey levels.

Values are slope · stored + intercept, or what the file's modality table says, such as Hounsfield units. MONOCHROME1,
in which high is black, is inverted within the range of the stored bits. A window of centre c and width w maps a value x
to

    LINEAR         (x - (c - 1/2)) / (w - 1) + 1/2,  cut to [0, 1]
    LINEAR_EXACT   (x - c) / w + 1/2,  cut to [0, 1]
    SIGMOID        1 / (1 + exp(-4 (x - c) / w))

Reference: DICOM, PS3.3, C.7.6.3 (image), C.11.1 (modality), C.11.2.1 (window) and C.7.6.16 (several frames).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.data.files.opening import MOST_PAGES, check_size, reported
from matrix_ssl.errors import MissingExtra, UnreadableImage, import_extra

_PREAMBLE, _MAGIC = 128, b"DICM"
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # transfer syntax
_META = 4096  # bytes that hold the name of the transfer syntax
_GREY = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(content: bytes) -> bool:
    """Whether the bytes are those of a DICOM file with its preamble."""
    return content[_PREAMBLE : _PREAMBLE + len(_MAGIC)] == _MAGIC


def frame_numbers(content: bytes) -> list[int]:
    """The numbers of the frames in a file, at most ``MOST_PAGES``; only the first if the file cannot be read."""
    with contextlib.suppress(UnreadableImage), reported(content, ""):
        count = int(_read(content, "").get("NumberOfFrames", 1) or 1)
        return list(range(max(1, min(count, MOST_PAGES))))
    return [0]


def read_dicom(content: bytes, where: str, *, frame: int = 0, windowed: bool = False) -> tuple[NDArray[Any], float]:
    """The values of a frame (h, w, c), and the value of white, or 0 if the file does not say.

    Args:
        windowed: apply the first window of the file, or else one from the lowest to the highest value of the frame, so
            that grey levels are in [0, 1]. Colours stay as they are.

    Raises:
        UnreadableImage: at ``where``, the file is damaged or absurdly large, has no image, an unknown photometric
            interpretation or a compression for which no decoder is installed, or pydicom is not installed.
    """
    with reported(content, where):
        dataset = _read(content, where)
        if "Rows" not in dataset or "Columns" not in dataset or "PixelData" not in dataset:
            raise UnreadableImage(where, "a DICOM file without an image of whole numbers")
        samples = int(dataset.get("SamplesPerPixel", 1))
        check_size(int(dataset.Columns), int(dataset.Rows), where, channels=samples)
        stored, kind = _stored(dataset, frame, where), str(dataset.PhotometricInterpretation)
        if kind == "PALETTE COLOR":
            pixels = import_extra("pydicom.pixels", extra="dicom")
            colours = pixels.apply_color_lut(stored[..., 0], dataset)
            return colours, float(np.iinfo(colours.dtype).max)
        if kind not in _GREY:
            if samples != 3:
                raise UnreadableImage(where, f"a DICOM image of the photometric interpretation {kind}: save it as RGB")
            return stored, float(2 ** int(dataset.BitsStored) - 1)
        groups = list(_groups(dataset, frame))
        inverted = kind == "MONOCHROME1"
        if windowed:
            grey = _windowed(_values(stored, dataset, groups), dataset, groups)
            return (1 - grey if inverted else grey), 1.0
        low, high = _limits(dataset)
        if inverted:
            stored = (low + high - stored.astype(np.int64)).astype(stored.dtype)
        values = _values(stored, dataset, groups)
        return values, float(high) if values.dtype.kind == "u" else 0.0


def _read(content: bytes, where: str) -> Any:
    try:
        pydicom = import_extra("pydicom", extra="dicom")
    except MissingExtra as error:
        raise UnreadableImage(where, f"a DICOM file: {error}") from None
    if _DEFLATED in content[:_META]:  # pydicom inflates without a limit
        raise UnreadableImage(where, "a DICOM file that is deflated as a whole: save it with another transfer syntax")
    return pydicom.dcmread(io.BytesIO(content))


def _stored(dataset: Any, frame: int, where: str) -> NDArray[Any]:
    """The numbers of a frame, (h, w, c); YBR colours as RGB."""
    pixels = import_extra("pydicom.pixels", extra="dicom")
    try:
        array: NDArray[Any] = pixels.pixel_array(dataset, index=frame)
    except RuntimeError as error:
        if "missing dependencies" not in str(error) and "plugin" not in str(error):
            raise
        name = dataset.file_meta.TransferSyntaxUID.name
        raise UnreadableImage(
            where, f"a DICOM image with the compression {name}, for which pydicom finds no decoder: install pylibjpeg"
        ) from None
    return array if array.ndim == 3 else array[..., None]


def _groups(dataset: Any, frame: int) -> Iterator[Any]:
    """What may describe a frame: the dataset, and the functional groups of the frame and of all frames."""
    yield dataset
    per_frame, shared = (dataset.get(f"{which}FunctionalGroupsSequence") or [] for which in ("PerFrame", "Shared"))
    for group in [*per_frame[frame : frame + 1], *shared[:1]]:
        yield from group.get("PixelValueTransformationSequence") or []
        yield from group.get("FrameVOILUTSequence") or []


def _values(stored: NDArray[Any], dataset: Any, groups: list[Any]) -> NDArray[Any]:
    if dataset.get("ModalityLUTSequence"):
        table: NDArray[Any] = import_extra("pydicom.pixels", extra="dicom").apply_modality_lut(stored, dataset)
        return table
    group = next((one for one in groups if one.get("RescaleSlope") is not None), None)
    slope, intercept = (1.0, 0.0) if group is None else (float(group.RescaleSlope), float(group.RescaleIntercept))
    return stored if (slope, intercept) == (1.0, 0.0) else stored * slope + intercept


def _windowed(values: NDArray[Any], dataset: Any, groups: list[Any]) -> NDArray[np.float64]:
    x = values.astype(np.float64)
    group = next((one for one in groups if one.get("WindowCenter") is not None), None)
    if group is None and dataset.get("VOILUTSequence"):
        table = import_extra("pydicom.pixels", extra="dicom").apply_voi(values, dataset)
        depth = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.asarray(table / (2.0**depth - 1), dtype=np.float64)
    if group is None:
        low, high = float(x.min()), float(x.max())
        return (x - low) / (high - low) if high > low else np.zeros_like(x)
    centre, width = (_first(group[name].value) for name in ("WindowCenter", "WindowWidth"))
    function = str(group.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (x - centre) / width)))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width <= 0:
        return (x > centre).astype(np.float64)
    return np.clip((x - centre) / width + 0.5, 0, 1)


def _limits(dataset: Any) -> tuple[int, int]:
    """The lowest and the highest number that the stored bits can hold."""
    bits = int(dataset.BitsStored)
    if not 1 <= bits <= 32:
        raise ValueError(f"{bits} bits a pixel")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if int(dataset.PixelRepresentation) else (0, 2**bits - 1)


def _first(value: Any) -> float:
    """A number, or the first of several."""
    return float(value[0]) if hasattr(value, "__len__") and not isinstance(value, str) else float(value)
