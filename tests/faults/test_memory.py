"""Commands under a limit of their address space: what is promised fits, and what does not fit is one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch

from matrix_ssl.api.measuring import measure
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.feature_rows import rows_of
from matrix_ssl.evaluate.measure import compare_rows
from matrix_ssl.runs import checkpoint
from tests.support.runs import BARE, fail, run, succeed, tiny

LIMITED = """
import psutil, resource
size = psutil.Process().memory_info().vms + {mib} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (size, size))
"""
ROWS, WIDTH = 1_200_000, 64  # 293 MiB
MEASURE = 256  # MiB that "measure" may take, most of it address space that each thread reserves


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A file of features that is larger than the limit."""
    rows = np.random.default_rng(0).standard_normal((1000, WIDTH), dtype=np.float32)
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (ROWS, WIDTH))
    for start in range(0, ROWS, len(rows)):
        file[start : start + len(rows)] = rows
    file.flush()
    return tmp_path / "x.npy"


def test_measuring_needs_no_more_memory_for_more_rows(features: Path) -> None:
    ended = run(features.parent, ["measure", "x.npy"], before=LIMITED.format(mib=MEASURE))
    assert ended.code == 0, ended.err
    features.unlink()  # the order of columns has to be read at once
    np.lib.format.open_memmap(features, "w+", np.float32, (ROWS, WIDTH), fortran_order=True).flush()
    message = fail(features.parent, ["measure", "x.npy"], before=LIMITED.format(mib=MEASURE))
    assert "memory" in message.lower()


def test_features_of_too_many_columns_are_refused_before_they_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((2, 200_000), np.float32))
    with pytest.raises(DataError, match=r"wide\.npy: the products of 200,000 columns take 3874\.3 GiB and .* are free"):
        measure(tmp_path / "wide.npy")
    wide = rows_of(torch.zeros(2, 200_000), "a")
    with pytest.raises(DataError, match="a and a: the products of 400,000 columns take"):
        compare_rows(wide, wide)


def test_a_training_that_does_not_fit_is_one_sentence_and_resumes(tmp_path: Path) -> None:
    stop = (
        "\nimport matrix_ssl.training.engine as e; real = e.Engine.update\n"
        "def update(self, *rest):\n"
        "    if self.task.step == 4: import torch; torch.empty(2**44)\n"
        "    return real(self, *rest)\n"
        "e.Engine.update = update\n"
    )
    words = tiny("checkpoint_every=3", "log_every=1")
    message = fail(tmp_path, words, before=BARE + stop, code=1)
    assert message.startswith("The memory is not enough. Use smaller batches (--set batch_size=...)")
    newest, problems = checkpoint.load_newest(tmp_path / "r")
    assert newest is not None and newest.step == 3 and not problems
    assert "Resuming after step 3" in succeed(tmp_path, words, before=BARE).err
