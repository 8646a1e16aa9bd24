"""Images of more than 8 bits: read to the last bit, or refused with the reason; and their level of white."""

import logging
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from matrix_ssl.config.reading import Reading
from matrix_ssl.data import open_source
from matrix_ssl.data.files.images import decode_image, highest_level, read_image
from matrix_ssl.errors import UnreadableImage

_TIFF_TYPES = {np.dtype(np.uint8): 1, np.dtype(np.uint16): 1, np.dtype(np.int8): 2, np.dtype(np.int16): 2}


def tiff(
    pixels: np.ndarray, *, photometric: int = 1, planar: bool = False, extra: tuple[int, ...] = (), order: str = "<"
) -> bytes:
    """An uncompressed TIFF file of (h, w, samples), by the specification: one strip, or one for each plane."""
    h, w, samples = pixels.shape
    kind = _TIFF_TYPES.get(pixels.dtype, 3)
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    strips = [stored[..., k].tobytes() for k in range(samples)] if planar else [stored.tobytes()]
    values: dict[int, tuple[str, list[int]]] = {
        256: ("H", [w]), 257: ("H", [h]), 258: ("H", [8 * pixels.dtype.itemsize] * samples), 259: ("H", [1]),
        262: ("H", [photometric]), 273: ("I", [0] * len(strips)), 277: ("H", [samples]), 278: ("H", [h]),
        279: ("I", [len(strip) for strip in strips]), 284: ("H", [1 + planar]), 339: ("H", [kind] * samples),
    }  # fmt: skip
    if extra:
        values[338] = ("H", list(extra))
    first = 8 + 2 + 12 * len(values) + 4
    size = sum(length for code, v in values.values() if (length := struct.calcsize(f"{len(v)}{code}")) > 4)
    values[273] = ("I", [first + size + sum(map(len, strips[:k])) for k in range(len(strips))])
    entries = outside = b""
    for tag, (code, v) in sorted(values.items()):
        packed = struct.pack(f"{order}{len(v)}{code}", *v)
        place = struct.pack(f"{order}I", first + len(outside)) if len(packed) > 4 else packed.ljust(4, b"\0")
        outside += packed if len(packed) > 4 else b""
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(v)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(values))
    return head + entries + struct.pack(f"{order}I", 0) + outside + b"".join(strips)


def png(pixels: np.ndarray, *, bits: int = 16, transparent: Sequence[int] = ()) -> bytes:
    """A PNG file of 8 or 16 bits from (h, w, channels) of 1 to 4 channels; ``transparent`` are levels of one pixel."""
    h, w, channels = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))
    if transparent:
        header += chunk(b"tRNS", struct.pack(f">{channels}H", *transparent))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def decoded(content: bytes, **options: Reading) -> np.ndarray:
    return decode_image(content, "x", **options).numpy().transpose(1, 2, 0)


def refused(content: bytes, **options: int) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(content, "x", **options)
    return caught.value.reason


@pytest.fixture
def colours() -> np.ndarray:
    """(20, 30, 3) of all levels."""
    return np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)


def rounded(levels: np.ndarray, white: int = 65535) -> np.ndarray:
    return np.floor(levels.astype(np.float64) * 255 / white + 0.5).astype(np.uint8)


def test_colours_of_16_bits_are_rounded_as_grey_is(colours: np.ndarray) -> None:
    for content in (tiff(colours, photometric=2), tiff(colours, photometric=2, order=">"), png(colours)):
        np.testing.assert_array_equal(decoded(content), rounded(colours))


def test_transparency_of_16_bits(colours: np.ndarray) -> None:
    opaque = np.full((20, 30, 1), 65535, np.uint16)
    np.testing.assert_array_equal(decoded(png(np.dstack([colours, opaque]))), rounded(colours))
    np.testing.assert_array_equal(decoded(png(np.dstack([colours, 0 * opaque]))), np.full((20, 30, 3), 255))
    grey = decoded(png(np.dstack([colours[..., :1], opaque]))).astype(int)
    assert abs(grey - rounded(colours[..., :1])).max() <= 1


def test_colours_in_separate_planes(colours: np.ndarray) -> None:
    assert refused(tiff(colours, photometric=2, planar=True)) == (
        "a TIFF with 16-bit channels in separate planes: save it with the channels interleaved"
    )
    small = (colours >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decoded(tiff(small, photometric=2, planar=True)), small)


@pytest.mark.parametrize("order", ["<", ">"])
def test_inverted_grey_levels(colours: np.ndarray, order: str) -> None:
    """0 is white (MinIsWhite)."""
    grey = colours[..., :1]
    content = tiff(grey, photometric=0, order=order)
    if order == "<":
        np.testing.assert_array_equal(decoded(content)[..., :1], rounded(65535 - grey))
    else:
        assert refused(content).startswith(
            "a TIFF of 1 x 16-bit unsigned integers, inverted grey, which cannot be read"
        )
    small = (grey >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decoded(tiff(small, photometric=0, order=order))[..., :1], 255 - small)
    unit = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30, 1)
    np.testing.assert_array_equal(decoded(tiff(unit, photometric=0))[..., 0], np.rint(255 * (1 - unit[..., 0])))


@pytest.mark.parametrize(
    ("bands", "type_", "reason"),
    [
        (
            13,
            np.uint16,
            "a TIFF of 13 bands, and images have 1 or 3 colours: keep all bands by --set data.channels=13, or",
        ),
        (5, np.uint8, "a TIFF of 5 bands"),
        (2, np.uint16, "a TIFF of 2 x 16-bit unsigned integers, grey"),
        (1, np.int8, "a TIFF of 8-bit signed integers"),
        (1, np.float64, "a TIFF of 1 x 64-bit floating-point numbers"),
        (1, np.float16, "a TIFF of 1 x 16-bit floating-point numbers"),
    ],
)
def test_what_is_not_read_is_refused_with_the_reason(
    bands: int, type_: type, reason: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    extra = (0,) * (bands - 1)
    with caplog.at_level(logging.DEBUG):
        assert refused(tiff(np.ones((4, 5, bands), type_), extra=extra)).startswith(reason)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_rgb_with_more_bands_is_refused(colours: np.ndarray) -> None:
    six = np.dstack([colours, colours])
    assert "a TIFF of 6 bands" in refused(tiff((six >> 8).astype(np.uint8), photometric=2, extra=(0, 0, 0)))
    assert "a TIFF with CIELAB" in refused(tiff((colours >> 8).astype(np.uint8), photometric=8))


def test_12_bits_in_16(colours: np.ndarray) -> None:
    few = colours >> 4
    for content in (tiff(few, photometric=2), png(few), png(few[..., :1]), tiff(few[..., :1])):
        levels = few if content in (tiff(few, photometric=2), png(few)) else few[..., :1]
        assert highest_level(content) == levels.max()
        assert decoded(content).max() == 16
        np.testing.assert_array_equal(
            decoded(content, reading=Reading(white_level=4095))[..., : levels.shape[2]], rounded(levels, 4095)
        )
        assert "of data.white_level" in refused(content, reading=Reading(white_level=1023))
    small = (colours >> 8).astype(np.uint8)
    assert highest_level(tiff(small, photometric=2)) == 0
    np.testing.assert_array_equal(decoded(tiff(small, photometric=2), reading=Reading(white_level=4095)), small)
    assert highest_level(b"") == 0


def test_a_file_that_says_its_white_needs_no_setting() -> None:
    levels = np.array([[0, 2048, 4095]], ">u2")
    content = b"P5 3 1 4095\n" + levels.tobytes()
    assert (
        decoded(content)[0, :, 0].tolist()
        == decoded(content, reading=Reading(white_level=1023))[0, :, 0].tolist()
        == [0, 128, 255]
    )
    assert highest_level(content) == 0


def test_dark_datasets_are_a_warning_with_the_setting(tmp_path: Path, colours: np.ndarray) -> None:
    for kind, shift in (("dark", 6), ("full", 0)):
        (tmp_path / kind).mkdir()
        for k in range(3):
            (tmp_path / kind / f"{k}.png").write_bytes(png((colours >> shift)[k:, ..., :1]))
    dark = open_source(str(tmp_path / "dark"), split="train", data_root=None)
    highest = int(colours[..., 0].max()) >> 6
    assert dark.remarks == (
        f"Warning: the highest level of the images of 16 bits is {highest}, of 65535, so they are dark. If their "
        "levels have 10 bits, use --set data.white_level=1023.",
    )
    bright = open_source(str(tmp_path / "dark"), split="train", data_root=None, reading=Reading(white_level=1023))
    assert bright.remarks == ()
    np.testing.assert_array_equal(
        bright.subset([2]).read(0), read_image(tmp_path / "dark/2.png", reading=Reading(white_level=1023))
    )
    assert bright.read(0).max() == 255
    assert open_source(str(tmp_path / "full"), split="train", data_root=None).remarks == ()


def test_the_level_of_white_reaches_packed_and_joined_datasets(tmp_path: Path, colours: np.ndarray) -> None:
    files = [png((colours >> 4)[..., :1]) for _ in range(2)]
    np.savez(
        tmp_path / "p.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offs=np.cumsum([0, *map(len, files)])
    )  # fmt: skip
    (tmp_path / "f").mkdir()
    (tmp_path / "f/1.png").write_bytes(files[0])
    expected = rounded((colours >> 4)[..., 0], 4095)
    for data in (str(tmp_path / "p.npz"), (str(tmp_path / "p.npz"), str(tmp_path / "f"))):
        assert "data.white_level=4095" in open_source(data, split="train", data_root=None).remarks[0]
        source = open_source(data, split="train", data_root=None, reading=Reading(white_level=4095))
        np.testing.assert_array_equal(source.read(len(source) - 1)[0], expected)
        if source.images is not None:
            np.testing.assert_array_equal(source.subset([1]).images[0, 0], expected)  # type: ignore[index]


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"\0\0\0\x18ftypcrx \0\0\0\0", "a raw image of a camera"), (b"8BPS\0\1", "a Photoshop image"),
     (b"PK\x03\x04zip", "a zip archive")],
)  # fmt: skip
def test_a_different_kind_under_the_name_of_an_image_is_named(content: bytes, kind: str) -> None:
    assert refused(content) == f"{kind}; save it as JPEG or PNG"
