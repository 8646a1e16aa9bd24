"""Refusals of the system as sentences, whoever met them."""

import errno
import os
from pathlib import Path

import pytest

from matrix_ssl.cli.refusals import refusal


def caused_by(error: OSError) -> Exception:
    """An error of a library that was raised from one of the system."""
    try:
        raise ValueError("the library gives up") from error
    except ValueError as outer:
        return outer


def refused(number: int, place: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), place)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (refused(errno.ENOSPC, "/a/b"), "/a/b: No space left on device. Free space there or choose another place."),
        (refused(errno.EACCES, "/a"), "/a: Permission denied. Choose another place, or change its permissions."),
        (caused_by(refused(errno.EROFS, "/a")), "/a: Read-only file system. Choose another place."),
        (refused(errno.EMFILE), "Too many open files. Raise the limit of open files (ulimit -n)."),
        (
            refused(errno.EAGAIN),
            "Resource temporarily unavailable. Raise the limit of processes and threads (ulimit -u), or use fewer.",
        ),
        (
            RuntimeError("can't start new thread"),
            "A thread cannot be started. Raise the limit of processes and threads (ulimit -u), or use fewer.",
        ),
        (
            caused_by(FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/']")),
            "No folder takes temporary files (/tmp, /). Let the variable TMPDIR name one that does.",
        ),
        (
            RuntimeError("cannot cache function 'f': no locator available for file 'umap.py'"),
            "UMAP cannot keep its compiled code. Let the variable NUMBA_CACHE_DIR name a folder that takes files.",
        ),
        (refused(errno.ENOENT, "/a"), None),
        (ValueError("a defect"), None),
    ],
)
def test_refusals_are_told_from_defects(error: Exception, sentence: str | None) -> None:
    assert refusal(error) == sentence


def test_the_variable_that_names_the_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tmp_path}/cache/inductor")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert refusal(refused(errno.ENOENT, f"{tmp_path}/cache")) == (  # which could not be made
        f"{tmp_path}/cache: No such file or directory. Choose another place (the variable TORCHINDUCTOR_CACHE_DIR "
        "decides where that is)."
    )
    inside = refusal(refused(errno.EDQUOT, f"{tmp_path}/home/.cache/huggingface/hub"))
    assert inside is not None and "another place (the variable XDG_CACHE_HOME decides" in inside
    elsewhere = refusal(refused(errno.EDQUOT, f"{tmp_path}/home/images"))
    assert elsewhere is not None and "the variable" not in elsewhere
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for place in (f"{tmp_path}/home/images/r/config.json", "a.npz"):
        monkeypatch.setattr("sys.argv", ["matrix-ssl", "embed", f"--out={tmp_path}/home/images"])
        chosen = refusal(refused(errno.ENOSPC, place))  # the user has chosen the place
        assert chosen is not None and "the variable" not in chosen
    inside = refusal(refused(errno.EDQUOT, f"{tmp_path}/home/.cache/huggingface/hub"))
    assert inside is not None and "XDG_CACHE_HOME" in inside  # the nearest
    assert refusal(refused(errno.ENOENT, f"{tmp_path}/file")) is None  # the folder is there: a defect
