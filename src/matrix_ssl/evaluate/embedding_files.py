"""Feature files of a dataset, with the path, label and digest of every image.

    .npz          arrays features, where, digests, data_digest, encoder, encoder_digest, labels, classes and grid
    .npy          only the features; the other columns are in NAME.npy.csv
    .csv          columns path, label, digest, and f0, f1, ... for the features
    .parquet      columns path, label, digest, and features, a list
    .safetensors  the tensors features and labels; the rest as JSON in the metadata

Rows are written in chunks, so features that are memory-mapped from a file may be larger than memory.
"""

import contextlib
import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import open_file, parse_json, why
from matrix_ssl.errors import ConfigError, DataError, import_extra
from matrix_ssl.evaluate.feature_rows import KEY, open_features
from matrix_ssl.evaluate.features import Embedding
from matrix_ssl.runs.files import csv_lines, table_paths, write_atomically

ENDINGS = (".npz", ".npy", ".csv", ".parquet", ".safetensors")
SELF_DESCRIBING = (".npz", ".parquet", ".safetensors")  # contain the digests of encoder and images
_ROWS = 4096  # rows written at a time
_FACTS = ("data_digest", "encoder", "encoder_digest")
_COLUMNS = ("path", "label", "digest")
_ANSWERS = {  # columns of the tables that commands such as ``matrix-ssl outliers`` write
    "query", "rank", "similarity", "group", "distance", "cluster", "representative", "suggested", "probability", "gain",
}  # fmt: skip


def check_format(path: Path, *, patches: bool = False) -> None:
    """Raises ConfigError for a file whose ending is not in ``ENDINGS`` or, with patches, is that of a table."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{path}: features are written to {', '.join(ENDINGS)} files.")
    if patches and path.suffix.lower() in (".csv", ".parquet"):
        raise ConfigError(f"{path}: a table has one row an image; write patches to a .npz, .npy or .safetensors file.")
    if path.suffix.lower() == ".parquet":
        import_extra("pyarrow", extra="datasets")


def write_embedding(path: Path, embedding: Embedding) -> None:
    """Writes a file in the format given by its ending, either completely or not at all.

    Raises:
        ConfigError: there is no such format, or it cannot store patches.
        MissingExtra: pyarrow, for Parquet, is not installed.
        RunFolderError: the file cannot be written.
    """
    check_format(path, patches=embedding.grid is not None)
    kind = path.suffix.lower()
    if kind == ".npz":
        write_atomically(path, lambda file: np.savez(file, **_arrays(embedding)))
    elif kind == ".npy":
        _write_npy(path, embedding)
    elif kind == ".csv":
        write_atomically(path, lambda file: _write_csv(file, embedding, path))
    elif kind == ".parquet":
        write_atomically(path, lambda file: _write_parquet(file, embedding))
    else:
        write_atomically(path, lambda file: _write_safetensors(file, embedding))


def _write_npy(path: Path, embedding: Embedding) -> None:
    """Writes the features, and all other columns alongside; if either file cannot be written, neither changes."""
    staged = path.with_name(f"{path.name}.new")
    write_atomically(staged, lambda file: np.save(file, embedding.features))
    try:
        write_atomically(_beside(path), lambda file: _write_csv(file, embedding, path, features=False))
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def read_embedding(path: Path) -> Embedding:
    """Reads features from a file of this package or any other program; what the file lacks is left empty.

    Images without a path are named by their row, ``features.npy[12]``.

    Raises:
        DataError: the file is missing or damaged, its parts do not fit together, or an element is not finite.
    """
    if path.suffix.lower() == ".csv":
        return _fitting(path, *_read_csv(path))
    rows = open_features(path)
    features = torch.cat(list(rows.batches())).float().numpy()
    try:
        return _fitting(path, features, _read_facts(path))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {why(error)}.") from error


def read_patches(path: Path) -> Embedding:
    """Reads features of patches from a .npz or .safetensors file of this package, with their grid.

    Raises:
        DataError: the file is missing or damaged, its parts do not fit together, or it has no patches.
    """
    try:
        if path.suffix.lower() == ".npz":
            arrays = read_arrays(path, (KEY, "grid"))
            features, grid = arrays[KEY], arrays["grid"].tolist()
        else:
            with safe_open(path, framework="np") as file:
                features, grid = file.get_tensor(KEY), parse_json(file.metadata()["grid"])
        rows, columns = grid
        if features.ndim != 3 or features.dtype != np.float32 or features.shape[1] != rows * columns:
            raise ValueError(f"features of shape {features.shape} are not of {rows} x {columns} patches")
        if not np.isfinite(features).all():
            raise ValueError("a feature is not finite")
        return replace(_fitting(path, features, _read_facts(path)), grid=(rows, columns))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as features of patches: {why(error)}.") from error


def _arrays(embedding: Embedding) -> dict[str, Any]:
    """The arrays of a .npz file; unknown facts are left out."""
    arrays: dict[str, Any] = {
        KEY: embedding.features,
        "where": np.array(embedding.paths, dtype=np.str_),
        "data_digest": np.array(embedding.digest),
        "encoder": np.array(embedding.encoder),
        "encoder_digest": np.array(embedding.encoder_digest),
    }
    if embedding.digests is not None:
        arrays["digests"] = np.array(embedding.digests, dtype=np.bytes_)
    if embedding.labels is not None:
        arrays |= {"labels": embedding.labels, "classes": np.array(embedding.classes, dtype=np.str_)}
    if embedding.grid is not None:
        arrays["grid"] = np.array(embedding.grid)
    return arrays


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.csv")


def _rows(embedding: Embedding) -> Iterator[tuple[str, str, str]]:
    """Path, class name and digest of every image; each is empty if it is not known."""
    for row, path in enumerate(embedding.paths):
        label = "" if embedding.labels is None else (embedding.classes or [])[embedding.labels[row]]
        yield path, label, "" if embedding.digests is None else embedding.digests[row]


def _write_csv(file: IO[bytes], embedding: Embedding, path: Path, *, features: bool = True) -> None:
    embedding = replace(embedding, paths=list(table_paths(embedding.paths, path)))
    names = [f"f{column}" for column in range(embedding.features.shape[1])] if features else []
    rows = (
        [*columns, *(embedding.features[row].tolist() if features else ())]
        for row, columns in enumerate(_rows(embedding))
    )
    for line in csv_lines(itertools.chain([[*_COLUMNS, *names]], rows)):
        file.write(line.encode(errors="surrogateescape"))


def _write_parquet(file: IO[bytes], embedding: Embedding) -> None:
    pyarrow = import_extra("pyarrow", extra="datasets")
    from pyarrow import parquet

    facts = {"data_digest": embedding.digest, "encoder": embedding.encoder, "encoder_digest": embedding.encoder_digest}
    text = pyarrow.string()
    schema = pyarrow.schema(
        [(name, text) for name in _COLUMNS] + [(KEY, pyarrow.list_(pyarrow.float32()))],
        metadata={**facts, "classes": json.dumps(embedding.classes and list(map(_unicode, embedding.classes)))},
    )
    rows, width = _rows(embedding), embedding.features.shape[1]
    with parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(embedding), _ROWS):
            piece = np.ascontiguousarray(embedding.features[start : start + _ROWS], dtype=np.float32)
            columns = [next(rows) for _ in piece]
            texts = [pyarrow.array(map(_unicode, column), text) for column in zip(*columns, strict=True)]
            ends = pyarrow.array(np.arange(0, piece.size + 1, width, dtype=np.int32))
            lists = pyarrow.ListArray.from_arrays(ends, pyarrow.array(piece.ravel()))
            writer.write_batch(pyarrow.record_batch([*texts, lists], schema=schema))


def _unicode(name: str) -> str:
    """A name with escapes for bytes that are not Unicode, the only text that Parquet can store."""
    return name.encode(errors="backslashreplace").decode()


def _write_safetensors(file: IO[bytes], embedding: Embedding) -> None:
    """Writes 8 bytes of length, a JSON header and plain numbers; the library's own writer needs all data in memory."""
    facts = {name: array.tolist() for name, array in _arrays(embedding).items() if name not in (KEY, "labels")}
    if "digests" in facts:
        facts["digests"] = embedding.digests
    tensors: dict[str, NDArray[Any]] = {KEY: embedding.features}
    if embedding.labels is not None:
        tensors["labels"] = embedding.labels
    header: dict[str, Any] = {"__metadata__": {name: json.dumps(value) for name, value in facts.items()}}
    end = 0
    for name, array in tensors.items():
        header[name] = {"dtype": {4: "F32", 8: "I64"}[array.itemsize], "shape": array.shape,
                        "data_offsets": [end, end := end + array.nbytes]}  # fmt: skip
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    file.write(len(content).to_bytes(8, "little") + content)
    for array in tensors.values():
        for start in range(0, len(array), _ROWS):
            file.write(np.ascontiguousarray(array[start : start + _ROWS]).tobytes())


def _read_facts(path: Path) -> dict[str, Any]:
    """What a file contains besides the features: lists and strings, by the array names of a .npz file."""
    kind = path.suffix.lower()
    if kind == ".npz":
        names = ("where", "digests", "labels", "classes", *_FACTS)
        facts = {name: array.tolist() for name, array in read_arrays(path, names).items()}
        if isinstance(digests := facts.get("digests"), list):
            facts["digests"] = [one.decode("ascii") if isinstance(one, bytes) else one for one in digests]
        return facts
    if kind == ".npy":
        return _read_csv(_beside(path), features=False)[1] if _beside(path).exists() else {}
    if kind == ".parquet":
        return _read_parquet(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        facts = {
            name: parse_json(metadata[name]) for name in ("where", "digests", "classes", *_FACTS) if name in metadata
        }
        return facts | ({"labels": file.get_tensor("labels").tolist()} if "labels" in file.keys() else {})  # noqa: SIM118


def _read_parquet(path: Path) -> dict[str, Any]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    names = [name for name in _COLUMNS if name in file.schema_arrow.names]
    columns = file.read(names).to_pydict() if names else {}
    metadata = {name.decode(): text.decode() for name, text in (file.schema_arrow.metadata or {}).items()}
    facts: dict[str, Any] = {name: metadata[name] for name in _FACTS if name in metadata}
    return facts | _of_columns(columns, parse_json(metadata.get("classes", "null")))


def _read_csv(path: Path, *, features: bool = True) -> tuple[NDArray[np.float32], dict[str, Any]]:
    try:
        with open_file(path) as content:
            text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(text)
            names = next(reader, [])
            if repeated := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"the column {repeated!r} is there twice; rename one")
            if features and (rest := [name for name in names if name not in _COLUMNS]) and _ANSWERS.issuperset(rest):
                raise ValueError(f"it lists images by {', '.join(rest)}; name a file that matrix-ssl embed wrote")
            chosen = {name: names.index(name) for name in _COLUMNS if name in names}
            numbers = [i for i, name in enumerate(names) if i not in chosen.values()] if features else []
            columns: dict[str, list[str]] = {name: [] for name in chosen}
            rows = []
            _check_names(names)
            for number, line in enumerate(reader, 1):
                if line and len(line) != len(names):
                    raise ValueError(f"row {number} has {len(line)} cells and the heading {len(names)}")
                if not line:
                    continue
                for name, place in chosen.items():
                    columns[name].append(line[place])
                rows.append(np.array([line[i] for i in numbers], dtype=np.float32))
        facts = _of_columns(columns, None)
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a table of features: {why(error)}. It needs a heading, commas, and a number in "
            "every cell of the features."
        ) from error
    matrix = np.stack(rows) if rows else np.zeros((0, len(numbers)), dtype=np.float32)
    if features and (0 in matrix.shape or not np.isfinite(matrix).all()):
        raise DataError(f"{path}: expected at least one row of finite numbers in columns f0, f1 and so on.")
    return matrix, facts


def _check_names(names: list[str]) -> None:
    """Raises ValueError for a first row that is not a heading, or a heading with an unnamed column."""
    if len(names) == 1 and (mark := next((one for one in ";\t" if one in names[0]), "")):
        raise ValueError(f"its cells are separated by {mark!r}")
    if "" in names:
        raise ValueError(
            f"column {names.index('') + 1} has no name; leave it out if it numbers the rows (index=False in pandas)"
        )
    if names and all(map(_is_number, names)):
        raise ValueError("the first row holds numbers and no names of columns")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _of_columns(columns: dict[str, list[Any]], classes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if "path" in columns:
        facts["where"] = columns["path"]
    if any(columns.get("digest", ())):
        facts["digests"] = columns["digest"]
    if any(label not in ("", None) for label in columns.get("label", ())):
        if not all(isinstance(label, (str, int, type(None))) for label in columns["label"]):
            raise ValueError("its labels are neither text nor whole numbers")
        labels = ["" if label is None else str(label) for label in columns["label"]]
        if "" in labels:
            raise ValueError(f"row {labels.index('') + 1} has no label and others have: fill it, or leave them all out")
        if not isinstance(classes, (list, type(None))):
            raise ValueError("its classes are not a list")
        facts["classes"] = classes or sorted(set(labels))
        number = {str(name): label for label, name in enumerate(facts["classes"])}
        facts["labels"] = [number.get(name, -1) for name in labels]
    return facts


def _fitting(path: Path, features: NDArray[np.float32], facts: dict[str, Any]) -> Embedding:
    """The parts of a file as one ``Embedding``, checked to agree in their number of images."""
    count = len(features)
    lists = {name: _texts(path, name, facts[name]) for name in ("where", "digests", "classes") if name in facts}
    words = {name: facts.get(name, "") for name in _FACTS}
    for name, word in words.items():
        _texts(path, name, [word])
    labels, classes = _labels(path, facts["labels"], lists.get("classes")) if "labels" in facts else (None, None)
    for name, values in (("where", lists.get("where")), ("digests", lists.get("digests")), ("labels", labels)):
        if values is not None and len(values) != count:
            raise DataError(f"{path} has {count} rows of features and {len(values)} of {name}: write it again.")
    places = lists.get("where") or [f"{path.name}[{row}]" for row in range(count)]
    return Embedding(
        features, places, labels, classes, words["data_digest"], [], lists.get("digests"), None, words["encoder"],
        words["encoder_digest"],
    )  # fmt: skip


def _texts(path: Path, name: str, values: Any) -> list[str]:
    """A list of strings that can be written again; numbers are converted to strings."""
    with contextlib.suppress(UnicodeEncodeError):
        if isinstance(values, list) and all(isinstance(one, (str, int, float)) for one in values):
            texts = [str(one) for one in values]
            "".join(texts).encode(errors="surrogateescape")  # accepts undecodable bytes of file names, nothing else
            return texts
    raise DataError(f"{path}: {name} holds something else than text: write it again.")


def _labels(path: Path, values: Any, classes: list[str] | None) -> tuple[NDArray[np.int64], list[str]]:
    """Labels (n,) and their names; labels without names are named by their numbers."""
    labels = None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        labels = np.array(values)
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(f"{path} has labels that are not whole numbers from 0: write it again.")
    if classes is None:
        numbers, labels = np.unique(labels, return_inverse=True)
        classes = [str(number) for number in numbers]
    if twice := next((name for name, count in Counter(classes).items() if count > 1), ""):
        raise DataError(f"{path}: two classes have the name {twice!r}; rename one and write it again.")
    if labels.max() >= len(classes):
        raise DataError(f"{path} has labels that are not indices of its classes: write it again.")
    return labels.astype(np.int64), classes
