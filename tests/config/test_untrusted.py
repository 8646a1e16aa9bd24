"""Files and JSON from elsewhere: nothing is waited for, followed for writing, read without end or unfolded."""

import errno
import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import (
    DEEPEST_JSON,
    append,
    decompress,
    file_sha256,
    open_file,
    open_lock,
    open_to_append,
    parse_json,
    read_end,
    read_file,
)

NOT_FILES = ("pipe", "/dev/zero", "link to a pipe", "link to a device")


def place(folder: Path, what: str) -> Path:
    """A path at which there is no regular file."""
    if what.startswith("/"):
        return Path(what)
    path = folder / "target"
    if what.endswith("pipe"):
        os.mkfifo(path)
    if what.startswith("link"):
        link = folder / "link"
        link.symlink_to(path if what.endswith("pipe") else "/dev/zero")
        return link
    return path


@pytest.mark.parametrize("what", NOT_FILES)
def test_only_regular_files_are_read(tmp_path: Path, what: str) -> None:
    path = place(tmp_path, what)
    for read in (open_file, file_sha256, lambda path: read_end(path, most=9)):
        with pytest.raises(OSError, match="pipe, a device or a socket"):
            read(path)


def test_the_digest_and_the_end_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    assert file_sha256(path) == hashlib.sha256(bytes(range(100))).hexdigest()
    assert read_end(path, most=3) == bytes([97, 98, 99]) and len(read_end(path, most=1000)) == 100


@pytest.mark.parametrize("what", NOT_FILES)
@pytest.mark.parametrize("opener", [open_to_append, open_lock])
def test_only_regular_files_are_written(tmp_path: Path, what: str, opener: object) -> None:
    with pytest.raises(OSError):
        opener(place(tmp_path, what))  # type: ignore[operator]


@pytest.mark.parametrize("opener", [open_to_append, open_lock])
def test_a_link_is_not_followed_for_writing(tmp_path: Path, opener: object) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(OSError) as caught:
        opener(tmp_path / "link")  # type: ignore[operator]
    assert caught.value.errno == errno.ELOOP and (tmp_path / "victim").read_text() == "precious"


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    (tmp_path / "b").symlink_to("a")
    assert read_file(tmp_path / "b") == b"text"


def test_bytes_are_added_at_the_end(tmp_path: Path) -> None:
    append(tmp_path / "a", b"one")
    append(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"onetwo"


@pytest.mark.parametrize("size, fits", [(100, True), (101, False)])
def test_a_file_is_read_up_to_a_size(tmp_path: Path, size: int, fits: bool) -> None:
    (tmp_path / "a").write_bytes(bytes(size))
    if fits:
        assert len(read_file(tmp_path / "a", most=100)) == size
    else:
        with pytest.raises(OSError, match="larger than"):
            read_file(tmp_path / "a", most=100)


def test_gzip_is_unpacked_member_by_member() -> None:
    content = gzip.compress(b"one\n") + gzip.compress(b"two\n") + bytes(8)
    assert decompress(content) == gzip.decompress(content) == b"one\ntwo\n"


def test_gzip_is_unpacked_up_to_a_size() -> None:
    with pytest.raises(OSError, match="larger than"):
        decompress(gzip.compress(bytes(10**7)), most=10**6)


def test_damaged_gzip_is_an_error() -> None:
    content = gzip.compress(bytes(range(256)) * 9)
    with pytest.raises(EOFError):
        decompress(content[:-9])
    with pytest.raises(zlib.error):
        decompress(content[:40] + b"\xff" + content[41:])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 65 + "]" * 65])
def test_json_has_a_depth(text: str) -> None:
    with pytest.raises(ValueError, match=f"deeply, in more than {DEEPEST_JSON}"):
        parse_json(text)


def test_json_of_that_depth_is_read() -> None:
    text = "[" * DEEPEST_JSON + "]" * DEEPEST_JSON
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 5000, str(2**63), str(-(2**63) - 1)])
def test_integers_of_json_have_64_bits(number: str) -> None:
    with pytest.raises(ValueError, match="digits is too large"):
        parse_json(number)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 0, -5])
def test_integers_of_64_bits_are_read(number: int) -> None:
    assert parse_json(str(number).encode()) == number


def test_a_repeated_key_is_an_error() -> None:
    with pytest.raises(ValueError, match="key 'a' is repeated"):
        parse_json('{"b": {"a": 1, "a": 2}}')


def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array(["x", "yy"]), "c": np.array(3.5)}
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "a.npz", **arrays)
        read = read_arrays(tmp_path / "a.npz")
        assert list(read) == list(arrays)
        assert all(np.array_equal(read[name], array) for name, array in arrays.items())
    assert list(read_arrays(tmp_path / "a.npz", ("b",))) == ["b"]


def test_arrays_larger_than_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6, np.uint8))
    monkeypatch.setattr("matrix_ssl.config.system.memory", lambda: (10**9, 10**5))
    with pytest.raises(ValueError, match="unpacks to"):
        read_arrays(tmp_path / "a.npz")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="Object arrays"):
        read_arrays(tmp_path / "a.npz")
