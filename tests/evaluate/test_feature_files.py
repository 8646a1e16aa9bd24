"""Features on disk: whatever interrupts their writing, no image is lost, against features in memory."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matrix_ssl.errors import RunFolderError
from matrix_ssl.evaluate import feature_files
from matrix_ssl.evaluate.feature_files import FeatureFiles

BATCHES = [np.arange(start, start + 3) for start in range(0, 12, 3)]
VECTORS = np.random.default_rng(0).standard_normal((12, 5), dtype=np.float32)


def add(files: FeatureFiles, batch: np.ndarray) -> None:
    """A batch whose last image cannot be read."""
    files.add(batch[:-1], {"encoder": VECTORS[batch[:-1]]}, [(str(batch[-1]), "no image")])


@pytest.mark.parametrize("file", ["indices.i64", "encoder.f32"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_batch_that_is_written_in_part_is_computed_again(
    file: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved afterwards, as ``kept.embed_kept`` does, has none of its images."""
    files = FeatureFiles(tmp_path / "rows", fingerprint="a")
    add(files, BATCHES[0])
    append = feature_files.append

    def fails(path: Path, content: Any) -> None:
        append(path, content[:4] if path.name == file else content)
        if path.name == file:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(feature_files, "append", fails)
        with pytest.raises(RunFolderError if isinstance(error, OSError) else KeyboardInterrupt):
            add(files, BATCHES[1])
    files.save()
    again = FeatureFiles(tmp_path / "rows", fingerprint="a")
    assert again.seen == 3
    for batch in BATCHES[again.seen // 3 :]:
        add(again, batch)
    again.save()
    indices, vectors = FeatureFiles(tmp_path / "rows", fingerprint="a").read()
    assert indices.tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    np.testing.assert_array_equal(vectors["encoder"], VECTORS[indices])
    assert [where for where, _ in again.unreadable] == ["2", "5", "8", "11"]
