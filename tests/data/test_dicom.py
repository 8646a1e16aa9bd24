"""DICOM against pydicom's own pixel arrays, rescaling and windows, on its sample files and on files written here."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matrix_ssl.config.reading import Reading
from matrix_ssl.data.files.decoding import decode_values
from matrix_ssl.data.files.dicom import is_dicom
from matrix_ssl.data.files.images import decode_image
from matrix_ssl.data.files.values import pages_of
from matrix_ssl.errors import UnreadableImage

pydicom = pytest.importorskip("pydicom")
from pydicom import pixels as processing  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage  # noqa: E402

ALL = Reading(channels=-1)


def sample(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom comes without {name}")
    with open(path, "rb") as file:  # noqa: PTH123, a path of pydicom
        return file.read()


def dicom(stored: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> bytes:
    """A file of (h, w), (h, w, 3) or, with ``NumberOfFrames``, (frames, h, w)."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    bits = 8 * stored.dtype.itemsize
    rows, columns = stored.shape[1:3] if "NumberOfFrames" in elements else stored.shape[:2]
    defaults = {
        "Rows": rows, "Columns": columns, "SamplesPerPixel": 3 if stored.shape[-1] == 3 else 1, "BitsAllocated": bits,
        "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PhotometricInterpretation": "RGB" if stored.shape[-1] == 3 else "MONOCHROME2",
    }  # fmt: skip
    for name, value in (defaults | elements).items():
        setattr(dataset, name, value)
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = (
        dataset.SOPClassUID,
        "1.2.3",
    )
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def levels(dtype: Any, *, low: int = 0, high: int = 4095, shape: tuple[int, ...] = (9, 12)) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape, endpoint=True).astype(dtype)


def values(content: bytes, page: int = 0) -> np.ndarray:
    return decode_values(content, "x", reading=ALL, page=page).array


def grey(content: bytes) -> np.ndarray:
    """The grey levels of 8 bits."""
    image = decode_image(content, "x").numpy()
    assert image.dtype == np.uint8
    assert (image == image[:1]).all()
    return image[0]


def refused(content: bytes, reading: Reading = ALL) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(content, "x", reading=reading)
    return caught.value.reason


def windowed(content: bytes) -> np.ndarray:
    """8 bits by pydicom: rescaled, windowed, and brought from its range of output to 0 to 255."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    x = processing.apply_rescale(dataset.pixel_array, dataset)
    y = processing.apply_windowing(x, dataset)
    half = 2 ** (dataset.BitsStored - 1)
    ends = np.array([-half, half - 1] if dataset.PixelRepresentation else [0, 2 * half - 1])
    low, high = processing.apply_rescale(ends, dataset)
    unit = (y - low) / (high - low)
    return np.rint(255 * (1 - unit if dataset.PhotometricInterpretation == "MONOCHROME1" else unit))


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"])
def test_samples_are_the_rescaled_arrays_of_pydicom(name: str) -> None:
    content = sample(name)
    dataset = pydicom.dcmread(io.BytesIO(content))
    expected = processing.apply_rescale(dataset.pixel_array, dataset)
    np.testing.assert_array_equal(values(content)[..., 0], expected)
    unit = decode_image(content, "x", reading=Reading(channels=1, value_range=(-1000.0, 400.0))).numpy()
    np.testing.assert_allclose(unit[0], np.clip((expected + 1000) / 1400, 0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_are_those_of_pydicom(function: str, kind: str) -> None:
    for dtype, low in ((np.uint16, 0), (np.int16, -2000)):
        content = dicom(
            levels(dtype, low=low), PhotometricInterpretation=kind, RescaleSlope=2, RescaleIntercept=-1024,
            WindowCenter=[40, 300], WindowWidth=[700, 90], VOILUTFunction=function,
        )  # fmt: skip
        assert np.abs(grey(content) - windowed(content)).max() <= 1e-3 + (function == "LINEAR")  # of values on its end


def test_without_a_window_the_image_is_spread() -> None:
    stored = levels(np.uint16, low=100, high=300)
    expected = np.rint(255.0 * (stored - stored.min()) / (stored.max() - stored.min()))
    assert np.abs(grey(dicom(stored)) - expected).max() <= 1
    assert not grey(dicom(np.full((4, 5), 7, np.uint16))).any()


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16)])
def test_inverted_levels_are_inverted_within_the_stored_bits(dtype: Any, bits: int) -> None:
    stored = levels(dtype, high=2**bits - 1)
    content = dicom(stored, PhotometricInterpretation="MONOCHROME1", BitsStored=bits, HighBit=bits - 1)
    np.testing.assert_array_equal(values(content)[..., 0], 2**bits - 1 - stored.astype(np.int64))
    unit = decode_image(content, "x", reading=ALL).numpy()[0]
    np.testing.assert_allclose(unit, 1 - stored / (2**bits - 1), rtol=0, atol=1e-6)


def test_colours_and_palettes() -> None:
    colours = levels(np.uint8, high=255, shape=(6, 7, 3))
    np.testing.assert_array_equal(values(dicom(colours)), colours)
    np.testing.assert_array_equal(decode_image(dicom(colours), "x").numpy().transpose(1, 2, 0), colours)
    table = np.arange(256, dtype=np.uint16) * 257
    lookup = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
    lookup |= {f"{name}PaletteColorLookupTableData": np.roll(table, k).tobytes()
               for k, name in enumerate(("Red", "Green", "Blue"))}  # fmt: skip
    indices = levels(np.uint8, high=255)
    content = dicom(indices, PhotometricInterpretation="PALETTE COLOR", **lookup)
    np.testing.assert_array_equal(values(content), np.stack([np.roll(table, k)[indices] for k in range(3)], -1))


def test_frames_are_pages() -> None:
    stored = levels(np.uint16, shape=(3, 5, 6))
    content = dicom(stored, NumberOfFrames=3)
    assert pages_of(content) == [0, 1, 2]
    for frame in range(3):
        np.testing.assert_array_equal(values(content, frame)[..., 0], stored[frame])
    together = decode_values(content, "x", reading=Reading(channels=3, pages="channels")).array
    np.testing.assert_array_equal(together, stored.transpose(1, 2, 0))


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = dicom(levels(np.uint16))
    assert "a DICOM file that is deflated as a whole" in refused(
        content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    )
    assert "decompression-bomb limit" in refused(dicom(levels(np.uint16), Rows=60_000, Columns=60_000))
    assert "has no pixels" in refused(dicom(levels(np.uint16), Rows=0))
    assert "damaged image" in refused(dicom(levels(np.uint16), Rows=5000))
    for end in range(132, len(content), 23):
        refused(content[:end])
        refused(content[:end], Reading())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "a DICOM file: " in refused(content)
    assert "pip install -e '.[dicom]'" in refused(content, Reading())


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of the oracle, on padding and the like
def test_every_sample_of_pydicom_is_its_array_or_refused() -> None:
    folder = Path(get_testdata_file("CT_small.dcm", download=False)).parent
    read = 0
    for path in sorted(folder.glob("*.dcm")):
        content = path.read_bytes()
        try:
            found = values(content) if is_dicom(content) else None
        except UnreadableImage as error:
            assert error.reason, path.name
            continue
        if found is None:
            continue
        dataset = pydicom.dcmread(path)
        expected = processing.pixel_array(dataset, index=0)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            expected = processing.apply_color_lut(expected, dataset)
        expected = processing.apply_modality_lut(expected, dataset)
        np.testing.assert_array_equal(found.squeeze(), expected.squeeze(), err_msg=path.name)
        for reading in (Reading(), Reading(channels=-1, value_range=(0.0, 1000.0))):
            decode_image(content, path.name, reading=reading)
        read += 1
    assert read >= 20
