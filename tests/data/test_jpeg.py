"""JPEG files by simplejpeg: the pixels and the errors of Pillow."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from matrix_ssl.data.files import decoding
from matrix_ssl.data.files.decoding import decode_pixels
from matrix_ssl.errors import UnreadableImage

pytest.importorskip("simplejpeg", reason="simplejpeg is not installed (extra jpeg)")


def encoded(mode: str = "RGB", *, width: int = 45, height: int = 31, **options: Any) -> bytes:
    channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[mode]
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, *channels), dtype=np.uint8)
    image, file = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), io.BytesIO()
    (image if mode != "CMYK" else Image.frombytes("CMYK", image.size, image.tobytes())).save(file, "JPEG", **options)
    return file.getvalue()


def result(content: bytes) -> tuple[bytes, tuple[int, ...]] | str:
    try:
        pixels = decode_pixels(content, "x")
        assert pixels.flags.writeable
        return pixels.tobytes(), pixels.shape
    except UnreadableImage as error:
        return error.reason


def both(content: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    results = []
    for has in (True, False):
        monkeypatch.setattr(decoding, "_HAS_SIMPLEJPEG", has)
        results.append(result(content))
    return results


def test_pixels_are_those_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    rotated, resolution = Image.Exif(), Image.Exif()
    rotated[0x0112], resolution[0x011A] = 6, 72.0
    kinds: list[dict[str, Any]] = [
        *({"subsampling": s, "quality": q, "progressive": p} for s in (0, 1, 2) for q in (30, 95) for p in (0, 1)),
        {"mode": "L"}, {"mode": "CMYK"}, {"exif": rotated}, {"exif": resolution}, {"restart_marker_rows": 1},
        {"width": 1, "height": 1}, {"width": 16, "height": 8, "optimize": True}, {"keep_rgb": True},
    ]  # fmt: skip
    for kind in kinds:
        ours, pillows = both(encoded(**kind), monkeypatch)
        assert ours == pillows and not isinstance(ours, str), kind
        assert ours[1] == ((3, 45, 31) if kind.get("exif") is rotated else (3, *ours[1][1:])), kind


def test_it_decodes_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "to_pixels", lambda image: pytest.fail("Pillow has decoded it"))
    assert decode_pixels(encoded(), "x").shape == decode_pixels(encoded("L"), "x").shape == (3, 31, 45)


def test_damage_is_what_pillow_says_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, random = encoded(), np.random.default_rng(1)
    damaged = [whole[:length] for length in range(0, len(whole), 37)]
    for _ in range(150):
        content = bytearray(whole)
        for place in random.integers(2, len(content), 2):
            content[place] = random.integers(256)
        damaged.append(bytes(content))
    readable = 0
    for content in [*damaged, whole + b"rest", whole[:-2]]:
        ours, pillows = both(content, monkeypatch)
        assert ours == pillows
        readable += not isinstance(ours, str)
    assert 20 < readable < len(damaged) - 10
