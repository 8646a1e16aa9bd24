"""Images that are no photographs: every channel and bit, against tifffile, NumPy, pillow-heif and pydicom."""

import io
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from matrix_ssl.api.packing import pack
from matrix_ssl.config.reading import Reading
from matrix_ssl.data import open_source
from matrix_ssl.data.files.decoding import decode_values
from matrix_ssl.data.files.images import decode_image
from matrix_ssl.data.files.opening import avif_bits, page_numbers
from matrix_ssl.data.packing import PackSettings
from matrix_ssl.data.statistics import mean_and_deviation
from matrix_ssl.errors import ConfigError, DataError, UnreadableImage
from tests.data.test_deep import png
from tests.data.test_deep import tiff as plain_tiff

tifffile = pytest.importorskip("tifffile")
ALL = Reading(channels=-1)


def numbers(dtype: Any, channels: int = 3, *, side: int = 12, seed: int = 0) -> np.ndarray:
    """Random numbers (side, side + 3, channels) over the whole range of a type, or around 0 for floating point."""
    r, kind = np.random.default_rng(seed), np.dtype(dtype)
    shape = (side, side + 3, channels)
    if kind.kind == "f":
        return r.normal(0, 100, shape).astype(kind)
    info = np.iinfo(kind)
    return r.integers(info.min, info.max, shape, dtype=kind, endpoint=True)


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    planar = options.pop("planar", False)
    stored = pixels.transpose(2, 0, 1) if planar else pixels
    stored = pixels[..., 0] if pixels.shape[2] == 1 else stored
    options |= {} if pixels.shape[2] == 1 else {"planarconfig": "separate" if planar else "contig"}
    tifffile.imwrite(buffer, stored, **{"photometric": "minisblack"} | options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The beginning of a .npy file without its numbers."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0\x76\0" + text.encode()


def values(content: bytes, reading: Reading = ALL, page: int = 0) -> np.ndarray:
    return decode_values(content, "x", reading=reading, page=page).array


def refused(content: bytes, reading: Reading = ALL) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(content, "x", reading=reading)
    return caught.value.reason


class TestTiff:
    @pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"])
    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13, 16])
    def test_every_type_and_number_of_bands(self, dtype: str, channels: int) -> None:
        pixels = numbers(dtype, channels)
        predictor = pixels.dtype.kind != "f"  # for floating point tifffile has none of its own
        for options in (
            {},
            {"planar": channels > 1, "byteorder": ">"},
            {"compression": "zlib", "predictor": predictor},
        ):
            found = values(tiff(pixels, **options))
            assert found.dtype == pixels.dtype
            np.testing.assert_array_equal(found, pixels)

    @pytest.mark.parametrize("options", [
        {"tile": (16, 16)}, {"bigtiff": True}, {"rowsperstrip": 2}, {"photometric": "rgb"},
        {"photometric": "rgb", "planar": True}, {"compression": "lzma"},
    ])  # fmt: skip
    def test_every_layout(self, options: dict[str, Any]) -> None:
        for dtype in ("u1", "u2", "f4"):
            pixels = numbers(dtype, 3 if "photometric" in options else 5, side=40)
            np.testing.assert_array_equal(values(tiff(pixels, **options)), pixels)

    @pytest.mark.parametrize("channels", [1, 5])
    def test_inverted_levels(self, channels: int) -> None:
        pixels = numbers("u2", channels)
        np.testing.assert_array_equal(values(tiff(pixels, photometric="miniswhite")), 65535 - pixels)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_is_that_of_pillow(self, orientation: int) -> None:
        pixels = numbers("u1", 3)
        tag = [(274, "H", 1, orientation, True)]
        expected = values(tiff(pixels, photometric="rgb", extratags=tag))  # by Pillow
        np.testing.assert_array_equal(values(tiff(pixels.astype(np.uint32), extratags=tag)), expected)
        assert orientation == 1 or expected.shape != pixels.shape or not np.array_equal(expected, pixels)

    @pytest.mark.parametrize(("options", "reason"), [
        ({"dtype": "c8"}, "a TIFF of complex64"),
        ({"channels": 17}, "17 channels, and an image has at most 16"),
        ({"photometric": "cielab"}, "a TIFF with colours of type CIELAB"),
    ])  # fmt: skip
    def test_what_is_refused(self, options: dict[str, Any], reason: str) -> None:
        options = dict(options)
        pixels = np.ones((4, 5, options.pop("channels", 3)), options.pop("dtype", "u2"))
        assert reason in refused(tiff(pixels, **options))

    @pytest.mark.parametrize("compression", [5, 34925, 50000])  # LZW, LZMA, Zstandard
    def test_a_missing_decoder_is_named(self, compression: int) -> None:
        content = bytearray(tiff(numbers("u2", 5)))
        at = content.index((259).to_bytes(2, "little") + (3).to_bytes(2, "little"))
        content[at + 8 : at + 10] = compression.to_bytes(2, "little")  # by the tag alone
        reason = refused(bytes(content))
        assert "with the package imagecodecs: install it" in reason or "damaged image" in reason

    def test_without_tifffile_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tifffile", None)
        assert "pip install -e '.[tiff]'" in refused(tiff(numbers("u2", 5)))
        np.testing.assert_array_equal(values(tiff(numbers("u2", 1))), numbers("u2", 1))

    @pytest.mark.parametrize("channels", [3, 5])
    def test_cut_files_are_refused_or_whole(self, channels: int) -> None:
        pixels = numbers("u2", channels)
        content = tiff(pixels, planar=True)
        for end in range(0, len(content), 37):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    found = values(content[:end])
                except UnreadableImage:
                    continue
            np.testing.assert_array_equal(found, pixels)

    def test_a_part_that_unpacks_to_more_than_its_size_is_refused(self) -> None:
        honest = tiff(np.zeros((40, 40, 5), np.uint16), compression="zlib")
        bomb = zlib.compress(bytes(2**27))  # 128 MiB in 130 kB, where 16 kB belong
        content = bytearray(honest) + bomb
        for tag, value in ((273, len(honest)), (279, len(bomb))):
            at = next(k for k in range(8, len(honest)) if honest[k : k + 2] == tag.to_bytes(2, "little")
                      and honest[k + 2 : k + 4] in (b"\x03\0", b"\x04\0"))  # fmt: skip
            content[at + 2 : at + 12] = b"\x04\0\x01\0\0\0" + value.to_bytes(4, "little")
        assert "unpacks to more than its size" in refused(bytes(content))

    def test_absurd_sizes_are_refused_before_they_are_decoded(self) -> None:
        small = numbers("f8", 5)
        content = bytearray(plain_tiff(small.astype(np.uint16), extra=(0,) * 4))
        for tag in (256, 257):
            at = content.index(tag.to_bytes(2, "little") + (3).to_bytes(2, "little"))
            content[at + 8 : at + 10] = (60_000).to_bytes(2, "little")
        assert "decompression-bomb limit" in refused(bytes(content))


class TestPictures:
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_png_of_16_bits(self, channels: int) -> None:
        pixels = numbers("u2", channels)
        np.testing.assert_array_equal(values(png(pixels)), pixels)
        unit = decode_image(png(pixels), "x", reading=Reading(channels=channels)).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(unit, pixels / 65535, rtol=0, atol=1e-7)

    @pytest.mark.parametrize("highest", [1, 15, 100, 255, 256, 4095, 65535])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_pgm_and_ppm_of_every_highest_level(self, channels: int, highest: int) -> None:
        """In bytes and in text, with comments; Pillow keeps 8 bits of colours and rescales other levels of grey."""
        pixels = np.random.default_rng(0).integers(0, highest + 1, (4, 3, channels)).astype(np.uint16)
        pixels[0, 0], pixels[-1, -1] = 0, highest
        head = f"# by a camera\n3 4 # wide, high\n{highest}\n".encode()
        stored = pixels.astype("u1" if highest < 256 else ">u2").tobytes()
        text = b"# levels\n" + b"\n".join(b" ".join(b"%d" % level for level in row) for row in pixels.reshape(4, -1))
        for content in (b"P%d\n" % (5 if channels == 1 else 6) + head + stored,
                        b"P%d\n" % (2 if channels == 1 else 3) + head + text + b"\n"):  # fmt: skip
            np.testing.assert_array_equal(values(content), pixels)
            unit = decode_image(content, "x", reading=Reading(channels=channels)).numpy().transpose(1, 2, 0)
            np.testing.assert_allclose(unit, pixels / highest, rtol=0, atol=1e-6)
            if highest not in (255, 65535):  # those are Pillow's
                assert "damaged image" in refused(content[: 2 * len(content) // 3])

    @pytest.mark.parametrize(
        "content", [b"P5 2 1 70000 \0\1\0\2", b"P5 2 1 0 \0\0", b"P2 2 1 9 4 10", b"P2 2 1 9 4 x", b"P3 1 1 9 1 2 -3"]
    )
    def test_damaged_pgm_and_ppm_are_refused(self, content: bytes) -> None:
        assert "damaged image" in refused(content)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_transparent_level_is_white_with_16_bits_as_with_8(self, channels: int) -> None:
        """The chunk tRNS names a level or a colour, to the last bit."""
        pixels = np.full((2, 2, channels), 2570, np.uint16)
        pixels[1, 1, -1] += 1
        for bits, step in ((8, 257), (16, 1)):
            levels = pixels // step
            colours = decode_image(png(levels, bits=bits, transparent=levels[0, 0].tolist()), "x").numpy()
            assert (colours[:, 0, 0] == 255).all() and (colours[:, 1, 1] == 255).all() == (bits == 8)

    def test_what_would_lose_bits_is_refused(self) -> None:
        assert "cannot be read exactly" in refused(png(numbers("u2", 2)))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
    def test_8_bits_keep_their_channels(self, mode: str) -> None:
        image = Image.fromarray(numbers("u1", 3)).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        expected = np.asarray(image.convert({"1": "L", "P": "RGB"}.get(mode, mode)))
        np.testing.assert_array_equal(values(buffer.getvalue()).squeeze(), expected)

    def test_exif_orientation(self) -> None:
        image, buffer = Image.fromarray(numbers("u1", 3)), io.BytesIO()
        exif = Image.Exif()
        exif[274] = 6
        image.save(buffer, "PNG", exif=exif)
        np.testing.assert_array_equal(values(buffer.getvalue()), np.rot90(numbers("u1", 3), -1))

    def test_avif_keeps_8_bits_and_more_are_refused(self) -> None:
        buffer = io.BytesIO()
        try:
            Image.fromarray(numbers("u1", 3)).save(buffer, "AVIF", quality=100)
        except (KeyError, OSError):
            pytest.skip("Pillow was built without AVIF")
        content = buffer.getvalue()
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(values(content), np.asarray(image))
        header = content.index(b"av1C") + 6  # as of an image of 10 bits, and of 12
        for depth, bits in ((0x40, 10), (0x60, 12)):
            deep = content[:header] + bytes([content[header] | depth]) + content[header + 1 :]
            assert f"an AVIF image of {bits} bits, of which Pillow keeps 8" in refused(deep)
        start = content.index(b"mdat") - 4  # what looks like a header among the pixels is none
        assert avif_bits(content[: start + 8] + b"av1C\x81\x00\xff" + content[start + 8 :]) == 8

    def test_heic_in_colours_and_with_its_bits(self) -> None:
        pillow_heif = pytest.importorskip("pillow_heif")
        smooth = np.add.outer(np.arange(64), np.arange(96))[..., None] * np.array([1, 0.8, 0.3])
        buffer = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(smooth.astype(np.uint8))).save(buffer, quality=-1)
        content = buffer.getvalue()
        expected = np.asarray(pillow_heif.open_heif(io.BytesIO(content)))
        np.testing.assert_array_equal(decode_image(content, "x").numpy().transpose(1, 2, 0), expected)
        np.testing.assert_array_equal(values(content), expected)
        assert np.abs(expected - smooth).mean() < 2
        assert "damaged" in refused(content[: len(content) // 2])

    def test_heic_without_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(UnreadableImage, match=r"an HEIC image: .*pip install -e '\.\[heic\]'"):
            decode_image(b"\0\0\0\x18ftypheic\0\0\0\0", "x")


class TestArrays:
    @pytest.mark.parametrize("dtype", ["u1", ">u2", "u4", "i2", "<f4", ">f8", "f2"])
    def test_every_type_and_shape(self, dtype: str) -> None:
        pixels = numbers(np.dtype(dtype).newbyteorder("="), 5, side=20).astype(dtype)
        for array in (pixels, pixels.transpose(2, 0, 1), np.asfortranarray(pixels)):
            np.testing.assert_array_equal(values(npy(array)), pixels)
        np.testing.assert_array_equal(values(npy(pixels[..., 0])), pixels[..., :1])

    def test_the_number_of_channels_decides_where_the_shape_does_not(self) -> None:
        pixels = numbers("u1", 4, side=8)
        assert "both ends have a size of at most 16 channels" in refused(npy(pixels))
        np.testing.assert_array_equal(values(npy(pixels), Reading(channels=4)), pixels)
        np.testing.assert_array_equal(values(npy(pixels.transpose(2, 0, 1)), Reading(channels=4)), pixels)

    @pytest.mark.parametrize(("content", "reason"), [
        (npy(np.ones((4, 5, 20), np.float32))[:-1], "damaged image"),
        (npy(np.ones((2, 3, 4, 5))), "expected (h, w), (h, w, c) or (c, h, w) with c of at most 16"),
        (npy(np.ones((30, 30, 17))), "expected (h, w), (h, w, c)"),
        (npy(np.array([["a"]])), "an array of <U1"),
        (npy(np.ones((3, 3), complex)), "an array of complex128"),
        (npy(np.ones((0, 3))), "the image has no pixels"),
        (header("|O", (3, 3)), "of object"),
        (header("<f4", (900_000, 900_000)), "decompression-bomb limit"),
    ])  # fmt: skip
    def test_what_is_refused(self, content: bytes, reason: str) -> None:
        assert reason in refused(content)

    def test_in_colours(self) -> None:
        grey = numbers("u1", 1)
        np.testing.assert_array_equal(
            decode_image(npy(grey[..., 0]), "x").numpy(), grey.transpose(2, 0, 1).repeat(3, 0)
        )
        deep = numbers("u2", 3)
        expected = np.rint(deep * (255 / 65535)).astype(np.uint8).transpose(2, 0, 1)
        np.testing.assert_array_equal(decode_image(npy(deep), "x").numpy(), expected)
        assert "5 channels, and colours are 1 or 3: keep all by --set data.channels=5" in refused(
            npy(numbers("u1", 5, side=20)), Reading()
        )


class TestRange:
    def test_is_linear_and_cut(self) -> None:
        pixels = numbers("i2", 2)
        reading = Reading(channels=2, value_range=(-1000.0, 400.0))
        unit = decode_image(tiff(pixels), "x", reading=reading).numpy().transpose(1, 2, 0)
        expected = np.clip((pixels.astype(float) + 1000) / 1400, 0, 1)
        np.testing.assert_allclose(unit, expected, rtol=0, atol=1e-6)

    def test_of_the_format(self) -> None:
        for dtype, white in (("u1", 255), ("u2", 65535), ("u4", 2**32 - 1)):
            pixels = numbers(dtype, 5)
            unit = decode_image(tiff(pixels), "x", reading=ALL).numpy().transpose(1, 2, 0)
            np.testing.assert_allclose(unit, pixels / white, rtol=0, atol=1e-7)
        level = decode_image(tiff(numbers("u2", 5) // 16), "x", reading=Reading(channels=5, white_level=4095)).numpy()
        np.testing.assert_allclose(level.transpose(1, 2, 0), numbers("u2", 5) // 16 / 4095, rtol=0, atol=1e-7)

    def test_is_asked_for_where_there_is_none(self) -> None:
        assert "have no known range: use --set data.value_range=" in refused(tiff(numbers("i2", 2)))
        assert "have no known range" in refused(tiff(numbers("f4", 2)))
        assert "are not finite" in refused(tiff(np.full_like(numbers("f4", 2), np.nan)))
        assert decode_image(tiff(np.full((4, 5, 2), 0.5, np.float32)), "x", reading=ALL).eq(0.5).all()

    def test_numbers_that_are_none_and_other_channels_are_refused(self) -> None:
        broken = numbers("f4", 2)
        broken[1, 2] = np.nan
        assert "not finite" in refused(tiff(broken), Reading(channels=2, value_range=(0.0, 1.0)))
        assert refused(tiff(numbers("u2", 5)), Reading(channels=4)) == "5 channels, but data.channels=4"


class TestPages:
    @staticmethod
    def pages(*arrays: np.ndarray, kinds: list[int] | None = None) -> bytes:
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as file:
            for array, kind in zip(arrays, kinds or [0] * len(arrays), strict=True):
                file.write(array, subfiletype=kind, photometric="minisblack")
        return buffer.getvalue()

    def test_first_each_or_together(self, tmp_path: Path) -> None:
        pixels = numbers("u2", 4)
        content = self.pages(*pixels.transpose(2, 0, 1))
        np.testing.assert_array_equal(values(content)[..., 0], pixels[..., 0])
        np.testing.assert_array_equal(values(content, page=2)[..., 0], pixels[..., 2])
        np.testing.assert_array_equal(values(content, Reading(channels=-1, pages="channels")), pixels)
        for number in range(2):
            (tmp_path / f"{number}.tif").write_bytes(content)
        frames = [Image.fromarray(numbers("u1", 3, seed=k)) for k in range(3)]
        frames[0].save(tmp_path / "3.png", save_all=True, append_images=frames[1:])
        first, each = (
            open_source(str(tmp_path), split="train", data_root=None, reading=Reading(pages=pages))  # type: ignore[arg-type]
            for pages in ("first", "all")
        )
        assert (len(first), len(each)) == (3, 11)
        names = [Path(each.where(k)).name for k in range(5)]
        assert names == ["0.tif", "0.tif[1]", "0.tif[2]", "0.tif[3]", "1.tif"]
        assert first.digest != each.digest
        np.testing.assert_array_equal(each.read(10).numpy().transpose(1, 2, 0), numbers("u1", 3, seed=2))
        subset = each.subset([1, 9])
        assert Path(subset.where(0)).name == "0.tif[1]" and subset.encoded(0) is None

    def test_previews_and_masks_are_no_pages(self) -> None:
        one = numbers("u1", 1)[..., 0]
        assert page_numbers(self.pages(one, one[::2], one > 99, one, kinds=[0, 1, 4, 0])) == [0, 3]

    def test_pages_of_different_sizes_are_no_channels(self) -> None:
        one = numbers("u1", 1)[..., 0]
        together = Reading(channels=-1, pages="channels")
        assert "different sizes or types" in refused(self.pages(one, one[1:]), together)
        assert "17 pages, and an image has at most 16 channels" in refused(self.pages(*[one] * 17), together)


def test_a_folder_of_arrays_is_a_dataset_and_arrays_beside_images_are_none(tmp_path: Path) -> None:
    for name in ("a/1", "b/2"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.npy").write_bytes(npy(numbers("f4", 5, side=20)))
    source = open_source(str(tmp_path), split="train", data_root=None, reading=ALL)
    assert (len(source), source.channels, source.classes) == (2, 5, ["a", "b"])
    Image.new("RGB", (4, 4)).save(tmp_path / "a/3.png")
    beside = open_source(str(tmp_path), split="train", data_root=None)
    assert len(beside) == 1
    assert any("2 of 3 files, by their extensions: .npy (2)" in remark for remark in beside.remarks)


def test_packed_and_joined_datasets_keep_all_bits(tmp_path: Path) -> None:
    pixels = [numbers("u2", 5, seed=k) for k in range(4)]
    files = [tiff(one) for one in pixels]
    np.savez(tmp_path / "p.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offs=np.cumsum([0, *map(len, files)]))
    (tmp_path / "f").mkdir()
    (tmp_path / "f/1.tif").write_bytes(files[1])
    both = (str(tmp_path / "p.npz"), str(tmp_path / "f"))
    for data in (both[0], both):
        source = open_source(data, split="train", data_root=None, reading=ALL)
        assert source.channels == 5
        np.testing.assert_allclose(source.read(1).numpy().transpose(1, 2, 0), pixels[1] / 65535, rtol=0, atol=1e-7)
        np.testing.assert_array_equal(source.values(1), pixels[1])
        assert len(source.subset([1, 3])) == 2


def test_pack_keeps_channels_bits_and_pages(tmp_path: Path) -> None:
    pixels = [numbers("u2", 5, side=20, seed=k) for k in range(3)]
    (tmp_path / "x").mkdir()
    for k, one in enumerate(pixels):
        (tmp_path / f"x/{k}.tif").write_bytes(tiff(one))
    pack(str(tmp_path / "x"), tmp_path / "same", settings=PackSettings(channels=-1), workers=0)
    pack(str(tmp_path / "x"), tmp_path / "small", settings=PackSettings(channels=5, short_side=8), workers=0)
    same, small = (
        open_source(str(tmp_path / name), split="train", data_root=None, reading=Reading(channels=5))
        for name in ("same", "small")
    )
    for k, one in enumerate(pixels):
        np.testing.assert_array_equal(same.values(k), one)
        bands = (Image.fromarray(band.astype(np.float32)) for band in one.transpose(2, 0, 1))
        expected = np.stack([np.asarray(band.resize((9, 8), Image.Resampling.BILINEAR)) for band in bands], -1)
        assert small.values(k).dtype == np.uint16
        np.testing.assert_allclose(small.values(k), expected, rtol=0, atol=1.0)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/1.tif").write_bytes(TestPages.pages(*pixels[0].transpose(2, 0, 1)))
    together = PackSettings(channels=-1, pages="channels")
    pack(str(tmp_path / "pages"), tmp_path / "together", settings=together, workers=0)
    packed = open_source(str(tmp_path / "together"), split="train", data_root=None, reading=Reading(channels=5))
    np.testing.assert_array_equal(packed.values(0), pixels[0])
    with pytest.raises(ConfigError, match="--pages channels needs the number of channels"):
        PackSettings(pages="channels")


def test_warnings_about_damaged_tiff_tags_stay_hidden() -> None:
    content = b"II*\0garbage"  # the place of its tags lies behind its end, about which Pillow warns
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert page_numbers(content) == [0]
        for reading in (ALL, Reading()):
            with pytest.raises(UnreadableImage, match="not an image, or its first bytes are damaged"):
                decode_values(content, "damaged.tif", reading=reading)
    assert not seen


def test_a_folder_of_other_images_than_asked_for_names_the_reason(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.tif").write_bytes(tiff(numbers(np.uint16, 4, seed=number)))
    (tmp_path / "3.png").write_bytes(b"")
    source = open_source(str(tmp_path), split="train", data_root=None)
    source = source.with_reading(Reading(channels=7, value_range=(0, 1)))
    expected = (
        rf"none of the images can be read, so their mean is unknown\. The reason for 3 of them, such as "
        rf"{tmp_path}/0\.tif: 4 channels, but data\.channels=7\."
    )
    with pytest.raises(DataError, match=expected):
        mean_and_deviation(source, workers=0)
