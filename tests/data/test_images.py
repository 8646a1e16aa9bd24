"""Every kind of image file that a user may bring, and every kind of damage."""

import io
import logging
import os
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from matrix_ssl.data.files import opening
from matrix_ssl.data.files.images import decode_image, read_image
from matrix_ssl.data.files.opening import DICOM_EXTENSIONS, EXTENSIONS, HEIF_EXTENSIONS
from matrix_ssl.errors import UnreadableImage
from tests.support.runs import run


@pytest.fixture
def rgb() -> np.ndarray:
    """A 12 x 17 image with smooth colours, different along every axis."""
    rows, columns = np.mgrid[0:12, 0:17]
    return np.stack([rows * 20, columns * 14, 255 - rows * 10 - columns * 5], axis=-1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(content: bytes) -> np.ndarray:
    image = decode_image(content, "somewhere")
    assert image.dtype.is_floating_point is False
    assert image.permute(1, 2, 0).is_contiguous()
    return image.numpy().transpose(1, 2, 0)


def refuse(content: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(content, "some/where.png")
    assert caught.value.where == "some/where.png"
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_lossless_formats_come_back_exactly(rgb: np.ndarray, kind: str) -> None:
    np.testing.assert_array_equal(decode(encode(Image.fromarray(rgb), kind)), rgb)


def test_lossless_webp_and_single_colour_gif_come_back_exactly(rgb: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(encode(Image.fromarray(rgb), "WEBP", lossless=True)), rgb)
    plain = np.full((5, 7, 3), (10, 200, 30), dtype=np.uint8)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(plain), "GIF")), plain)


def test_jpeg_is_decoded_at_full_size_as_pillow_does(rgb: np.ndarray) -> None:
    big = np.tile(rgb, (40, 40, 1))
    content = encode(Image.fromarray(big), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_grey_and_one_bit_images_have_three_equal_channels(rgb: np.ndarray) -> None:
    grey = rgb[..., 0]
    np.testing.assert_array_equal(decode(encode(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=-1))
    bits = grey > 100
    expected = np.where(bits, 255, 0)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits), "PNG")), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    levels = np.array([[0, 128, 129, 257, 1000], [32768, 40000, 65000, 65406, 65535]], dtype=np.uint16)
    expected = np.array([[0, 0, 1, 1, 4], [128, 156, 253, 254, 255]])  # round(level / 257) by hand
    np.testing.assert_array_equal(decode(encode(Image.fromarray(levels), kind))[..., 0], expected)


def test_32_bit_integers_are_read_as_16_bit_levels_or_refused() -> None:
    levels = np.array([[0, 257, 65535]], dtype=np.int32)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(levels), "TIFF"))[0, :, 0], [0, 1, 255])
    for wrong in (-1, 65536):
        assert "0 to 65535" in refuse(encode(Image.fromarray(np.array([[0, wrong]], dtype=np.int32)), "TIFF"))


def test_float_images_in_either_usual_range() -> None:
    unit = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(unit), "TIFF"))[0, :, 0], [0, 128, 255])
    bytes_ = np.array([[0.0, 99.6, 255.0]], dtype=np.float32)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bytes_), "TIFF"))[0, :, 0], [0, 100, 255])
    for wrong, reason in ((-0.5, "known meaning"), (300.0, "known meaning"), (np.nan, "not finite")):
        assert reason in refuse(encode(Image.fromarray(np.array([[0.0, wrong]], dtype=np.float32)), "TIFF"))


def test_transparency_is_shown_on_white(rgb: np.ndarray) -> None:
    alpha = np.linspace(0, 255, rgb.shape[1]).round().astype(np.uint8)[None].repeat(len(rgb), axis=0)
    share = alpha[..., None] / 255.0
    content = encode(Image.fromarray(np.dstack([rgb, alpha])), "PNG")
    np.testing.assert_allclose(decode(content), rgb * share + 255 * (1 - share), atol=1)
    content = encode(Image.fromarray(np.dstack([rgb[..., 0], alpha])), "PNG")
    np.testing.assert_allclose(decode(content)[..., 1], rgb[..., 0] * share[..., 0] + 255 * (1 - share[..., 0]), atol=1)


def test_palette_with_and_without_transparency() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.testing.assert_array_equal(decode(encode(image, "PNG"))[0], [[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    for kind in ("PNG", "GIF"):
        content = encode(image, kind, transparency=1)
        np.testing.assert_array_equal(decode(content)[0], [[255, 0, 0], [255, 255, 255], [0, 0, 255]])


def test_palette_with_an_alpha_for_every_colour() -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 0, 0, 0])
    assert decode(encode(image, "PNG", transparency=b"\x00\xff"))[0].tolist() == [[255] * 3, [0] * 3]


def test_cmyk_jpeg_is_close_to_the_rgb_original(rgb: np.ndarray) -> None:
    big = np.kron(rgb, np.ones((8, 8, 1), dtype=np.uint8))  # large blocks: little JPEG loss
    content = encode(Image.fromarray(big).convert("CMYK"), "JPEG", quality=95)
    difference = np.abs(decode(content).astype(int) - big)
    assert difference.mean() < 3
    assert np.abs(255 - decode(content).astype(int) - big).mean() > 60  # inverted inks would be far off


def test_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(np.full((4, 4, 3), level, dtype=np.uint8)) for level in (50, 200)]
    for kind in ("GIF", "PNG", "TIFF"):
        assert (decode(encode(frames[0], kind, save_all=True, append_images=frames[1:])) == 50).all()


def test_exif_rotation_by_hand() -> None:
    upright = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8) * 40
    stored = np.array([[3, 6], [2, 5], [1, 4]], dtype=np.uint8) * 40  # a quarter turn to the left; 6 turns it back
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encode(Image.fromarray(stored), kind, exif=exif))[..., 0], upright)
    blocks = np.kron(stored, np.ones((16, 16), dtype=np.uint8))
    turned = decode(encode(Image.fromarray(blocks), "JPEG", quality=95, exif=exif))[8::16, 8::16, 0]
    np.testing.assert_allclose(turned, upright, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_agrees_with_pillow(rgb: np.ndarray, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(Image.fromarray(rgb), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(decode(content), np.asarray(expected))
    assert decode(content).shape[:2] == (rgb.shape[:2] if orientation < 5 else rgb.shape[1::-1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_cost_the_image(rgb: np.ndarray, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    block = exif.tobytes()
    plain = decode(encode(Image.fromarray(rgb), kind))
    for end in range(len(b"Exif\0\0") + 1, len(block)):
        np.testing.assert_array_equal(decode(encode(Image.fromarray(rgb), kind, exif=block[:end])), plain)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_truncated_files_are_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), kind)
    for part in (0.3, 0.7):
        assert refuse(content[: int(part * len(content))])


def test_flipped_bytes_never_raise_anything_else(rgb: np.ndarray) -> None:
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 3
    outcomes = set()
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM"):
        content = np.frombuffer(
            encode(Image.fromarray(rgb), kind, **({"exif": exif} if kind == "JPEG" else {})), np.uint8
        )
        for _ in range(60):
            damaged = content.copy()
            damaged[random.integers(0, len(content), 3)] = random.integers(0, 256, 3)
            try:
                outcomes.add(decode(damaged.tobytes()).shape[-1])
            except UnreadableImage:
                outcomes.add("refused")
    assert outcomes == {3, "refused"}


def test_plain_reasons() -> None:
    assert refuse(b"") == "the file is empty"
    assert "not an image" in refuse(b"<html>404 not found</html>")
    assert "not an image" in refuse(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")  # would start Ghostscript


def test_images_without_pixels_are_refused() -> None:
    assert refuse(png_header(0, 5))
    assert refuse(b"P6 0 4 255\n")


def test_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    assert "pixels" in refuse(png_header(60_000, 60_000))


def test_pillow_warnings_stay_hidden(rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(Image.fromarray(rgb), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", rgb.size // 3 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(content))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(decode(content), rgb)
    assert not seen


def test_reading_files(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "ein Bild ä.png"
    Image.fromarray(rgb).save(path)
    np.testing.assert_array_equal(read_image(path).numpy().transpose(1, 2, 0), rgb)
    with pytest.raises(UnreadableImage, match=r"gone\.png: the file does not exist"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(UnreadableImage, match="cannot be read"):
        read_image(tmp_path)
    text = tmp_path / "notes.jpg"
    text.write_text("these are no pixels")
    with pytest.raises(UnreadableImage, match=r"notes\.jpg: not an image"):
        read_image(text)


def test_extensions_are_lower_case_and_known_to_pillow() -> None:
    assert {extension.lower() for extension in EXTENSIONS} == EXTENSIONS
    others = {*HEIF_EXTENSIONS, *DICOM_EXTENSIONS}
    assert set(Image.registered_extensions()) | others >= EXTENSIONS


_AS_NOBODY = """
import os, sys
from pathlib import Path
from matrix_ssl.data.kinds.folder import open_folder
from matrix_ssl.data.kinds.packed import read_shard
from matrix_ssl.data.files.images import read_image
if os.getuid() == 0:
    os.setuid(65534)
folder = Path(sys.argv[1])
for action in (lambda: read_image(folder / "secret.png"), lambda: read_shard(folder / "secret.npz"),
               lambda: open_folder(folder, name="x"),
               lambda: print(len(open_folder(folder / "disk", name="x")), "image in the folder of a disk")):
    try:
        action()
    except Exception as error:
        print(type(error).__name__, error)
sys.stdout.flush()
raise SystemExit(0)
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs the permissions of a Unix system")
def test_what_may_not_be_read_is_named() -> None:
    """In another process, because the superuser may read everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for secret in (folder / "secret.png", folder / "secret.npz"):
            secret.write_bytes(b"x")
            secret.chmod(0)
        (folder / "closed").mkdir(mode=0)
        (folder / "disk" / "lost+found").mkdir(parents=True)
        (folder / "disk" / "lost+found").chmod(0)
        (folder / "disk" / "1.png").write_bytes(b"x")
        lines = run(folder, [name], before=_AS_NOBODY).out.splitlines()
    assert lines == [
        f"UnreadableImage {folder / 'secret.png'}: no permission to read the file",
        f"DataError {folder / 'secret.npz'}: no permission to read the file; allow it.",
        f"DataError {folder / 'closed'}: no permission to list the folder; allow it.",
        "1 image in the folder of a disk",
    ]


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_to_decode_opens_once_and_clears_no_cache_of_loggers(rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(Image.fromarray(rgb), "JPEG")
    expected, opened = decode(content), []
    real = opening._open
    monkeypatch.setattr(opening, "_open", lambda *words: opened.append(1) or real(*words))
    monkeypatch.setattr(logging.Logger, "setLevel", None)  # took half of the time of a small image
    np.testing.assert_array_equal(decode(content), expected)
    assert opened == [1]
    assert all(logging.getLogger(name).propagate for name in ("PIL", "tifffile", "pydicom"))
