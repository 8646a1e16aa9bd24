"""Refusals of the system as sentences, whoever met them."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

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
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "No space left on device. Free space or choose another place.",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
            "No space left on device. Free space or choose another place.",
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


def test_libraries_that_do_not_raise_the_errors_of_the_system(tmp_path: Path) -> None:
    """What safetensors, tokenizers and torch.save raise where a file may have 50 kB."""
    code = """
import json, resource, signal, sys, torch
from safetensors.torch import save_file
from matrix_ssl.errors import system_error
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
values = {"a": torch.zeros(100_000)}
found = []
for save in (lambda: save_file(values, "a.safetensors"), lambda: torch.save(values, "a.pt")):
    try:
        save()
    except Exception as error:
        assert not isinstance(error, OSError)
        found.append(system_error(error).errno)
print(json.dumps(found))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(ended.stdout) == [errno.EFBIG, errno.ENOSPC], ended.stderr
