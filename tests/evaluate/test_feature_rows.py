"""Files of features: what is read is what was written, and what cannot be read says why in one sentence."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from matrix_ssl.errors import DataError
from matrix_ssl.evaluate import feature_rows
from matrix_ssl.evaluate.feature_rows import open_features, rows_of

X = np.random.default_rng(0).standard_normal((37, 5)).astype(np.float32)


def write(path, x=X, key="features"):
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".npz":
        np.savez(path, **{key: x})
    elif path.suffix == ".safetensors":
        save_file({key: torch.from_numpy(x)}, path)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({key: list(x)}), path)
    return path


def content(rows):
    return torch.cat(list(rows.batches())).double().numpy()


@pytest.mark.parametrize("ending", feature_rows.ENDINGS)
@pytest.mark.parametrize("key", ["features", "pooled"])
def test_what_is_read_is_what_was_written(tmp_path, monkeypatch, ending, key):
    monkeypatch.setattr(feature_rows, "_NUMBERS", 40)  # batches of eight rows
    rows = open_features(write(tmp_path / f"x{ending}", key=key))
    assert (rows.name, rows.count, rows.width) == (f"x{ending}", 37, 5)
    np.testing.assert_array_equal(content(rows), X)
    np.testing.assert_array_equal(content(rows), X)  # a second time


@pytest.mark.parametrize("dtype", ["f2", ">f8", "i8", "u2"])
def test_numbers_of_other_types(tmp_path, dtype):
    x = np.arange(12).reshape(4, 3).astype(dtype)
    np.testing.assert_array_equal(content(open_features(write(tmp_path / "x.npy", x))), x.astype(float))
    np.testing.assert_array_equal(content(open_features(write(tmp_path / "y.npy", np.asfortranarray(x)))), x)


def test_parquet_with_a_column_for_each_feature(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"path": ["a"] * 37} | {f"f{i}": X[:, i] for i in range(5)}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    np.testing.assert_array_equal(content(open_features(tmp_path / "x.parquet")), X)


def test_a_key_names_one_of_several(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=X, b=2 * X, labels=np.arange(37))
    np.testing.assert_array_equal(content(open_features(tmp_path / "x.npz", key="b")), 2 * X)
    with pytest.raises(DataError, match=r"2 matrices \(a, b\): name one of a, b, labels with --key\.$"):
        open_features(tmp_path / "x.npz")
    with pytest.raises(DataError, match="has no 'c'"):
        open_features(tmp_path / "x.npz", key="c")
    with pytest.raises(DataError, match=r"array 'labels' has the shape \(37,\): expected \(images, features\)"):
        open_features(tmp_path / "x.npz", key="labels")
    with pytest.raises(DataError, match="a single array: remove --key"):
        open_features(write(tmp_path / "x.npy"), key="a")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_python_objects_are_refused(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    objects = np.array([[Bomb()]], dtype=object)
    np.save(path, objects) if ending == ".npy" else np.savez(path, features=objects, data_digest=objects)
    with pytest.raises(DataError, match=r"holds Python objects, which are not read: save an array of numbers\.$"):
        open_features(path)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.ones(3), r"has the shape \(3,\): expected \(images, features\)\.$"),
        (np.ones((2, 3, 4)), r"has the shape \(2, 3, 4\)"),
        (np.ones((0, 3)), "at least one row and one column"),
        (np.ones((2, 3), complex), "elements of type complex128: expected real numbers"),
        (np.array([["a", "b"]]), "elements of type <U1"),
    ],
)
def test_arrays_that_are_no_features(tmp_path, x, text):
    with pytest.raises(DataError, match=text):
        open_features(write(tmp_path / "x.npy", x))


@pytest.mark.parametrize("ending", feature_rows.ENDINGS)
def test_damaged_files(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"no such format")
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"x\.\w+ cannot be read: .*\.$"):
        open_features(path)
    with pytest.raises(DataError, match="does not exist"):
        open_features(tmp_path / f"absent{ending}")
    with pytest.raises(DataError, match=r"features are read from \.npy"):
        open_features(tmp_path / "x.csv")


def test_a_file_that_ends_early(tmp_path):
    path = write(tmp_path / "x.npy")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"x\.npy ends after 0 of 37 rows: write the file again\.$"):
        content(open_features(path))


def test_numbers_that_are_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_rows, "_NUMBERS", 40)
    x = X.copy()
    x[20, 3] = np.nan
    with pytest.raises(DataError, match=r"x\.npy: row 20, column 3 is nan; leave such rows out"):
        content(open_features(write(tmp_path / "x.npy", x)))


def test_tensors_in_memory():
    rows = rows_of(torch.from_numpy(X), "memory", digest="d")
    assert (rows.count, rows.width, rows.digest) == (37, 5, "d")
    np.testing.assert_array_equal(content(rows), X)
    with pytest.raises(DataError, match="memory has elements of type complex64"):
        rows_of(torch.ones(2, 2, dtype=torch.complex64), "memory")


@pytest.mark.parametrize("ending", feature_rows.ENDINGS)
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path, ending):
    os.mkfifo(tmp_path / "pipe")
    for number, target in enumerate((tmp_path / "pipe", "/dev/zero")):
        path = tmp_path / f"{number}{ending}"
        path.symlink_to(target)
        with pytest.raises(DataError, match="it is a pipe, a device or a socket, not a file"):
            open_features(path)


def test_rows_and_columns_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_rows.system, "memory", lambda: (1 << 30, 100))
    content(open_features(write(tmp_path / "rows.npy")))  # a row has 20 bytes
    for x in (np.asfortranarray(X), X.reshape(1, -1)):
        with pytest.raises(DataError, match=r"have to be read at once and .* are free"):
            content(open_features(write(tmp_path / "x.npy", x)))


def test_a_header_that_promises_more_than_the_file_holds_is_an_error(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (1, 1 << 58)}
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match="have to be read at once"):
        content(open_features(tmp_path / "x.npy"))
