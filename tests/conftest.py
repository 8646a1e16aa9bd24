"""Places that tests of faults need, and digits that are parsed once."""

import functools
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

NOBODY = 65534


def pytest_collection_finish() -> None:
    """Parses scikit-learn's digits once a process, and takes what stays to the end out of collections of garbage."""
    if datasets := sys.modules.get("sklearn.datasets"):
        datasets.load_digits = functools.cache(datasets.load_digits)
    if "hypothesis" in sys.modules:  # which asks, as it is imported, what refers to an object
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Forks the process that tests fork others from, where no warning, handler or patch of a test is in force."""
    if runs := sys.modules.get("tests.support.runs"):
        runs.Server.get()


def pytest_configure() -> None:
    """A cache of features for tests; hypothesis fails an example of 200 ms, unless told that no test bounds time."""
    os.environ["MATRIX_SSL_CACHE"] = tempfile.mkdtemp(prefix="matrix-ssl-cache-")
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


def pytest_unconfigure() -> None:
    """Removes that cache."""
    shutil.rmtree(os.environ["MATRIX_SSL_CACHE"], ignore_errors=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter and write in; pytest's own belong to one user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder
        folder.chmod(0o777)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Gives up the permissions of root for a block; does nothing for another user."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
