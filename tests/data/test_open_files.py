"""The limit of open files: seen before it is reached, and never taken for damage of an image."""

import gc
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import get_worker_info

from matrix_ssl.config import DataConfig
from matrix_ssl.data.files.images import read_image
from matrix_ssl.data.files.open_files import check_open_files
from matrix_ssl.data.loading import evaluation_batches
from matrix_ssl.errors import OpenFilesError, TrainingError
from matrix_ssl.evaluate.detection.files import ImageFiles
from tests.data.test_loading import Set
from tests.support.runs import make_images


@pytest.fixture
def leave() -> Iterator[Callable[[int], int]]:
    """Lowers the limit so that a number of further files can be opened; returns the limit."""
    gc.collect()  # files that earlier tests left open must not be closed in the middle of this one
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # the limit is one on numbers: with none free below the highest, it is one on how many there are
    highest = max(int(number) for number in os.listdir("/dev/fd"))  # noqa: PTH208
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] < highest:
        fillers.append(os.open(os.devnull, os.O_RDONLY))

    def lower(count: int) -> int:
        limit = fillers[-1] + 1 + count
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
        return limit

    yield lower
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for filler in fillers:
        os.close(filler)


class Leaking(Set):
    """Leaves a file open for each image that a worker reads."""

    def read(self, index: int) -> torch.Tensor:
        if get_worker_info() is not None:
            os.open(os.devnull, os.O_RDONLY)
        return super().read(index)


def test_room_is_counted_to_the_file(leave: Callable[[int], int]) -> None:
    limit = leave(5)
    check_open_files(4)  # looking takes a descriptor itself
    with pytest.raises(OpenFilesError, match=rf"^The limit of {limit} open files is too low: raise it with 'ulimit"):
        check_open_files(5)
    leave(0)
    with pytest.raises(OpenFilesError):
        check_open_files(1)


def test_an_image_that_cannot_be_opened_for_lack_of_descriptors_is_not_damaged(
    leave: Callable[[int], int], tmp_path: Path
) -> None:
    (path,) = make_images(tmp_path, 1)
    files = ImageFiles(tmp_path)
    leave(1)
    assert read_image(path).shape == (3, 20, 24)
    assert files.read(path.name) == path.read_bytes()
    limit = leave(0)
    with pytest.raises(OpenFilesError, match=rf"^The limit of {limit} open files .*\(--set data\.workers=0\)\.$"):
        read_image(path)
    with pytest.raises(OpenFilesError, match=rf"^The limit of {limit} open files .*\(--set workers=0\)\.$"):
        files.read(path.name)


def test_a_source_that_leaves_files_open_in_a_worker_is_an_error(leave: Callable[[int], int]) -> None:
    data = DataConfig(image_size=16, workers=1)
    leave(60)
    with pytest.raises(OpenFilesError):
        for _ in evaluation_batches(Leaking(400), data, device=torch.device("cpu"), batch_size=4):
            pass


def test_workers_that_cannot_hand_over_batches_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 99)
    long.mkdir()
    for folder, reason in ((tmp_path / "absent", "No such file"), (long, "AF_UNIX path too long")):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with pytest.raises(TrainingError, match=rf"a socket .* cannot be made \({reason}.*TMPDIR .*a short path, or"):
            next(evaluation_batches(Set(), DataConfig(workers=1), device=torch.device("cpu"), batch_size=2))
