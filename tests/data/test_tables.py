"""Tables of paths, labels and splits: the same datasets as the folders that they describe, as pandas writes them."""

import csv
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from matrix_ssl.config.system import limited
from matrix_ssl.data import has_test_split, open_source
from matrix_ssl.data.base import Source
from matrix_ssl.data.kinds import tables
from matrix_ssl.data.layout import Listing
from matrix_ssl.data.sources import absolute, check_outside
from matrix_ssl.errors import DataError, UnreadableImage
from tests.support.runs import BARE, make_images, succeed
from tests.support.runs import from_files as pretrain_from_files

FILES = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/zwölf, 12.png"]
CLASSES = ["cat", "cat", "dog", "dog"]


def make_files(folder: Path, files: list[str]) -> None:
    """An image for each file, of a grey level of its own."""
    for level, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (level, level, level)).save(path)


def opened(path: Path, split: str = "train") -> Source:
    return open_source(str(path), split=split, data_root=None)  # type: ignore[arg-type]


def write(table: Path, **columns: list[str]) -> Path:
    pd.DataFrame(columns).to_csv(table, index=False, sep="\t" if table.suffix == ".tsv" else ",")
    return table


@pytest.mark.parametrize(
    ("name", "headings"),
    [("t.csv", ("path", "label")), ("t.tsv", ("File Name", "class")), ("T.CSV", ("file_name", "Class Name")),
     ("t.csv", ("image-path", "target"))],
)  # fmt: skip
def test_a_table_of_a_folder_is_the_same_dataset(name: str, headings: tuple[str, str], tmp_path: Path) -> None:
    make_files(tmp_path / "photos", FILES)
    table = write(tmp_path / "photos" / name, **{headings[0]: FILES, "note": ["a", "", "b", ""], headings[1]: CLASSES})
    source, folder = opened(table), opened(tmp_path / "photos")
    assert (source.classes, source.labelled()[0].tolist()) == (["cat", "dog"], [0, 0, 1, 1])
    assert [source.where(i) for i in range(4)] == [folder.where(i) for i in range(4)]
    assert [int(source.read(i)[0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]
    assert source.digest == folder.digest
    assert source.remarks == (f"Classes of {table}: 2 (cat, dog).",)
    assert not has_test_split(str(table), data_root=None)


def test_the_order_is_that_of_the_rows_and_paths_may_lead_anywhere(tmp_path: Path) -> None:
    make_files(tmp_path / "photos", FILES)
    (tmp_path / "tables").mkdir()
    rows = ["../photos/dog/1.png", str(tmp_path / "photos" / "cat" / "2.png"), "../photos/cat/1.png"]
    source = opened(write(tmp_path / "tables" / "t.csv", file=rows, label=["10", "9", "9"]))
    assert [int(source.read(i)[0, 0, 0]) for i in range(3)] == [2, 1, 0]
    assert (source.classes, source.labelled()[0].tolist()) == (["9", "10"], [1, 0, 0])
    assert opened(write(tmp_path / "tables" / "u.csv", file=rows, label=["10", "9", "a"])).classes == ["10", "9", "a"]


def test_classes_that_are_numbers_are_in_their_order_however_long(tmp_path: Path) -> None:
    make_files(tmp_path, FILES)
    numbers = ["10" * 3000, "010", "9", "10"]
    assert opened(write(tmp_path / "t.csv", path=FILES, label=numbers)).classes == ["9", "010", "10", "10" * 3000]


def test_names_that_mean_a_missing_value_elsewhere_and_a_blank_line_above_the_headings(tmp_path: Path) -> None:
    make_files(tmp_path, FILES)
    rows = zip(["path", *FILES], ["label", "NA", "None", "nan", "NA"], strict=True)
    (tmp_path / "t.csv").write_text("\n" + "".join(f"{file};{label}\n" for file, label in rows))
    assert opened(tmp_path / "t.csv").classes == ["NA", "None", "nan"]


def test_a_spreadsheet_and_names_that_are_not_text(tmp_path: Path) -> None:
    make_files(tmp_path, FILES)
    wide = tmp_path / "wide.csv"
    rows = zip(["path", *FILES], ["label", *CLASSES], strict=True)
    wide.write_bytes("".join(f"{file};{label}\r\n" for file, label in rows).encode("utf-16"))
    assert opened(wide).classes == ["cat", "dog"]
    strange = tmp_path / "a\udcff.png"
    strange.write_bytes((tmp_path / FILES[2]).read_bytes())
    (tmp_path / "bytes.csv").write_bytes(b"path\na\xff.png\n")
    assert int(opened(tmp_path / "bytes.csv").read(0)[0, 0, 0]) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("path,label\na.png,Café\nb.png,Bar", r"the label 'Caf\xe9' is not in UTF-8"),
        ("path,Café,Bar\na.png,1,0\nb.png,0,1", r"the heading 'Caf\xe9' is not in UTF-8"),
        ("path,label,split\na.png,a,Entraîné\nb.png,b,train", r"the split 'Entra\xeen\xe9' is not in UTF-8"),
    ],
)
def test_text_in_the_encoding_of_windows_is_refused(rows: str, message: str, tmp_path: Path) -> None:
    make_files(tmp_path, ["a.png", "b.png"])
    (tmp_path / "t.csv").write_text(rows, encoding="windows-1252")
    remedy = "save it as CSV UTF-8, or convert it, from the encoding of Windows by iconv -f WINDOWS-1252 -t UTF-8."
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "t.csv")
    assert str(caught.value) == f"{tmp_path / 't.csv'}: {message}: {remedy}"


def test_splits(tmp_path: Path) -> None:
    make_files(tmp_path, FILES)
    table = write(tmp_path / "t.csv", path=FILES, label=CLASSES, split=["Train", "test", "training", "val"])
    train, test = opened(table), opened(table, "test")
    assert [Path(train.where(i)).name for i in range(2)] == ["1.png", "1.png"]
    assert (test.where(0), test.classes, test.labelled()[0].tolist()) == (
        str(tmp_path / FILES[1]), ["cat", "dog"], [0],
    )  # fmt: skip
    assert train.remarks[0] == f"{table}: training images from train, training, test images from test; not used: val."
    unlabelled = write(
        tmp_path / "u.csv", path=FILES, label=["cat", "", "dog", "dog"], split=["train", "test", "train", "val"]
    )
    assert Path(opened(unlabelled, "test").where(0)).name == "zwölf, 12.png"
    only = write(tmp_path / "v.csv", path=FILES[:2], subset=["train", ""])
    assert not has_test_split(str(only), data_root=None) and len(opened(only)) == 1
    assert "not used: rows without a split." in opened(only).remarks[0]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, "give t.csv a column with the heading 'label', or name the column of labels, as in t.csv:label=HEADING"),
        ({"label": ["cat", " ", "dog", ""]}, "2 of 4 rows have no label; fill them in, or remove these rows"),
        ({"label": ["cat"] * 4}, "every image has the label 'cat'; add images of another class"),
    ],
)
def test_why_there_are_no_labels(labels: dict[str, list[str]], words: str, tmp_path: Path) -> None:
    make_files(tmp_path, FILES)
    source = opened(write(tmp_path / "t.csv", path=FILES, **labels))
    assert len(source) == 4 and source.labels is None
    with pytest.raises(DataError, match=words):
        source.labelled()
    assert len(source.remarks) == len(labels)  # it is said at once where there is a column of labels


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "name,label\n1.png,cat\n",
            "none of the headings 'name', 'label' is that of the images' paths; name it 'path', or name it behind the "
            "table, as in t.csv:path=HEADING",
        ),
        ("path,label\n", "lists no image"),
        ("", "none of the headings"),
        ("path,label\n1.png,cat\n,dog\n", "row 3 has no path"),
        ("path,label\n1\0.png,cat\n", "row 2 has no path"),
        ("path,label\n1.png,a\n2.png,b\n1.png,b\n", "the image '1.png' has 2 rows; keep one for each image"),
        (
            "path,label\n3,cat\n4,dog\n",
            "none of its 2 files exists; the first would be .*/3, and no image below .* Write paths relative to",
        ),
        ("path,label\n1.png,a\n2.png,b\n./1.png,b\n", "the image '1.png' has 2 rows; keep one for each image"),
        (f"image,label\n{'A' * 3000},a\n{'B' * 3000},b\n", "none of its 2 files exists"),
        ('path,label\n1.png,"cat\n2.png,dog\n', "t.csv, line 3: unexpected end of data; close every quotation mark"),
        ('path,label\n1.png,"cat\n2.png,"dog\n', "t.csv, line 3: ',' expected after '\"'; close every quotation mark"),
        ("path,label\n1.png,cat,\n", "row 2 has 3 values and the headings are 2"),
        ("path,split\n1.png,test\n2.png,other\n", "no row is of the training split, only of 'other', 'test'"),
    ],
)
def test_what_is_no_table_of_images(content: str, words: str, tmp_path: Path) -> None:
    make_files(tmp_path, ["1.png", "2.png"])
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=words):
        opened(tmp_path / "t.csv")


def test_test_images_of_another_class_are_refused_where_they_are_used(tmp_path: Path) -> None:
    make_files(tmp_path, FILES)
    table = write(
        tmp_path / "t.csv", path=FILES, label=["cat", "dog", "bee", "dog"], split=["train", "train", "test", "test"]
    )
    assert len(opened(table)) == 2
    with pytest.raises(DataError, match="the class 'bee' of test images is not in the training split \\(2 classes\\)"):
        opened(table, "test")


def test_tables_next_to_folders_and_in_lists(tmp_path: Path) -> None:
    make_files(tmp_path / "a", FILES)
    make_files(tmp_path / "b", ["bee/1.png", "dog/1.png"])
    write(tmp_path / "a" / "t.csv", path=FILES, label=CLASSES)
    (tmp_path / "all.txt").write_text("a/t.csv\nb\n")
    source = opened(tmp_path / "all.txt")
    assert (len(source), source.classes) == (6, ["bee", "cat", "dog"])
    remarks = opened(tmp_path / "a").remarks
    assert any(
        "1 of 5 files, by their extensions: .csv (1). To use a table of paths" in remark for remark in remarks
    ), remarks


def test_on_the_command_line(tmp_path: Path) -> None:
    """Pre-training, evaluation on the table's test split, and a table that a command wrote as data again."""
    files = [path.name for path in make_images(tmp_path / "images", 40)]
    labels = [str(k % 2) for k in range(40)]
    splits = ["test" if k % 4 > 1 else "train" for k in range(40)]
    write(tmp_path / "images" / "scans.csv", image=files, label=labels, split=splits)
    words = pretrain_from_files("images/scans.csv", "data.workers=0")
    assert "20 images of 'scans'" in succeed(tmp_path, words, before=BARE).err
    data = json.loads((tmp_path / "r" / "config.json").read_text())["data"]
    assert data["source"] == str(tmp_path / "images" / "scans.csv")
    shown = succeed(tmp_path, ["evaluate", "r", "--protocol", "knn", "--device", "cpu"])
    assert "20 test images" in shown.out + shown.err
    succeed(tmp_path, ["embed", "r", "--split", "test", "--out", "features.csv", "--device", "cpu"])
    with (tmp_path / "features.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [f for f, split in zip(files, splits, strict=True) if split == "test"]
    assert [Path(row["path"]).name for row in rows] == wanted
    again = opened(tmp_path / "features.csv")
    assert [Path(again.where(i)).name for i in range(20)] == wanted
    assert again.labelled()[0].tolist() == [k % 2 for k in range(40) if k % 4 > 1]


IDS = {"train_images/abc.jpg": "rust", "train_images/x.1.png": "scab", "train_images/7.webp": "rust"}


@pytest.mark.parametrize(
    "names", [["abc", "x.1", "7"], ["abc.jpg", "x.1.png", "7.webp"], ["train_images/abc", "./train_images/x.1", "7"]]
)
def test_names_stand_for_the_images_below_the_folder(names: list[str], tmp_path: Path) -> None:
    make_files(tmp_path, [*IDS, "test_images/def.jpg"])
    table = write(tmp_path / "train.csv", image_id=names, label=list(IDS.values()))
    source = opened(table)
    whole = opened(write(tmp_path / "whole.csv", path=list(IDS), label=list(IDS.values())))
    assert [source.where(i) for i in range(3)] == [str(tmp_path / file) for file in IDS]
    assert (source.classes, source.labelled()[0].tolist()) == (["rust", "scab"], [0, 1, 0])
    assert source.digest == whole.digest
    assert source.remarks[0] == (
        f"{table}: its paths are the names of images below {tmp_path}, such as train_images/abc.jpg."
    )


def test_many_images_of_one_name_in_folders_of_their_own_are_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As series of scans are stored. The time grows with their number, not with its square, which takes minutes."""
    count = 20_000
    listing = Listing([f"scans/{number}/000000.dcm" for number in range(count)])
    monkeypatch.setattr(tables, "list_images", lambda folder, **_: listing)
    table = write(tmp_path / "t.csv", path=[f"{number}/000000" for number in reversed(range(count))])
    with limited(30):
        source = opened(table)
    assert [source.where(k) for k in (0, count - 1)] == [
        str(tmp_path / "scans" / str(number) / "000000.dcm") for number in (count - 1, 0)
    ]


def test_names_are_not_looked_for_in_folders_that_may_not_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of other users are in a folder for temporary files."""
    make_files(tmp_path, list(IDS))
    (tmp_path / "private").mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "private":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert opened(write(tmp_path / "t.csv", id=["abc"])).where(0) == str(tmp_path / "train_images" / "abc.jpg")
    with pytest.raises(DataError, match="none of its 1 files exists"):
        opened(write(tmp_path / "u.csv", id=["absent"]))
    with pytest.raises(DataError, match="private: no permission to list the folder; allow it"):
        opened(tmp_path)


def test_a_name_without_an_image_is_an_unreadable_image(tmp_path: Path) -> None:
    make_files(tmp_path, list(IDS))
    source = opened(write(tmp_path / "t.csv", id=["abc", "absent"], label=["a", "b"]))
    assert int(source.read(0)[0, 0, 0]) == 0
    with pytest.raises(UnreadableImage, match="absent"):
        source.read(1)


def test_a_name_of_several_images_is_refused_until_the_folder_is_named(tmp_path: Path) -> None:
    make_files(tmp_path, ["images/abc.jpg", "masks/abc.png", "images/def.jpg"])
    table = write(tmp_path / "t.csv", image_id=["def", "abc"], label=["a", "b"])
    words = (
        r"t.csv: row 3: 'abc' is the name of 2 images below .* \(images/abc.jpg, masks/abc.png\); name the folder of "
        r"the images, as in t.csv:folder=FOLDER"
    )
    with pytest.raises(DataError, match=words):
        opened(table)
    for folder in ("images", str(tmp_path / "images"), "../" + tmp_path.name + "/images"):
        source = open_source(f"{table}:folder={folder}", split="train", data_root=None)
        assert [int(source.read(i)[0, 0, 0]) for i in range(2)] == [2, 0]
    twice = write(tmp_path / "u.csv", image_id=["def", "def.jpg"])
    with pytest.raises(DataError, match=r"the image 'images/def.jpg' has 2 rows"):
        opened(twice)


def test_columns_that_are_named(tmp_path: Path) -> None:
    """They count before headings that are known."""
    make_files(tmp_path / "photos", FILES)
    table = write(
        tmp_path / "t.csv", path=["no"] * 4, Scan=FILES, label=["no"] * 4, **{"Diagnosis (2nd)": CLASSES},
        split=["no"] * 4, part=["train", "test", "train", "test"],
    )  # fmt: skip
    named = Path(f"{table}:path=scan,label=Diagnosis (2nd), split=part,folder=photos")
    train, test = opened(named), opened(named, "test")
    assert [train.where(i) for i in range(2)] == [str(tmp_path / "photos" / FILES[i]) for i in (0, 2)]
    assert (train.classes, train.labelled()[0].tolist()) == (["cat", "dog"], [0, 1])
    assert (test.where(1), test.labelled()[0].tolist()) == (str(tmp_path / "photos" / FILES[3]), [0, 1])


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (":", "t.csv:: '' names no column; write path=, label=, split= with a heading or folder= with a folder"),
        (":file", "t.csv:file: 'file' names no column"),
        (":labels=x", "'labels=x' names no column"),
        (":label=", "'label=' names no column"),
        (":path=path,path=note", "'path=note' names a second path; remove one of them"),
        (":label=note,label=note", "'label=note' names a second label"),
        (":label=note,label=NOTE", "t.csv: two of 'note', 'NOTE' name the same column; remove one of them"),
        (":label=grade", "t.csv has no heading 'grade', only 'path', 'note'; name one of these"),
        (":folder=photos", "photos is not a folder; write it relative to the folder of the table"),
        (f":folder={'A' * 300}", "AAA is not a folder; write it relative to the folder of the table"),
    ],
)
def test_what_names_no_columns(suffix: str, words: str, tmp_path: Path) -> None:
    make_files(tmp_path, FILES)
    table = write(tmp_path / "t.csv", path=FILES, note=CLASSES)
    with pytest.raises(DataError, match=re.escape(words)):
        open_source(f"{table}{suffix}", split="train", data_root=None)
    with pytest.raises(DataError, match=r"absent.csv' is not a file or folder here"):
        open_source(f"{tmp_path}/absent.csv{suffix}", split="train", data_root=None)


def test_one_column_for_each_class(tmp_path: Path) -> None:
    make_files(tmp_path, FILES)
    healthy, rust, scab = ["1", "0", "0", "1"], ["0", "1", "0", "0"], ["0", "0", "1", "0"]
    bits = pd.DataFrame({"healthy": healthy, "rust": rust, "scab": scab})
    for number, form in enumerate((bits, bits.astype(float), bits.astype(int).astype(bool))):
        table = tmp_path / f"{number}.csv"
        pd.DataFrame({"image_id": FILES}).join(form).to_csv(table, index=False)
        plain = opened(table)
        assert plain.labels is None
        suffix = ":label=healthy,label=rust,label=scab"
        assert plain.unlabelled_because.endswith(
            f"; if its columns of 0 and 1 are the classes, name them all: {table.name}{suffix}"
        )
        source = open_source(f"{table}{suffix}", split="train", data_root=None)
        assert source.classes == ["healthy", "rust", "scab"]
        assert source.labelled()[0].tolist() == form.to_numpy().astype(float).argmax(1).tolist()


@pytest.mark.parametrize(
    "rust", [["1", "1", "0", "0"], ["0", "0", "0", "0"], ["0", "2", "0", "0"], ["0", "", "0", "0"]]
)
def test_several_labels_of_an_image_or_none(rust: list[str], tmp_path: Path) -> None:
    make_files(tmp_path, FILES)
    table = write(tmp_path / "t.csv", path=FILES, healthy=["1", "0", "0", "1"], rust=rust, scab=["0", "0", "1", "0"])
    assert "name them all" not in opened(table).unlabelled_because
    source = open_source(f"{table}:label=healthy,label=rust,label=scab", split="train", data_root=None)
    missing = sum(row.count(1) != 1 or sum(row) != 1 for row in _numbers(table))
    words = (
        f"{missing} of 4 rows have no label; a label is the heading of the only 1 in the columns healthy, rust, scab, "
        "the others being 0: remove these rows, or name a single column that has one class for every image, as in "
        "t.csv:label=HEADING"
    )
    assert source.labels is None and source.remarks == (f"{table} has no labels: {words}.",)
    with pytest.raises(DataError, match=re.escape(words)):
        source.labelled()


def _numbers(table: Path) -> list[list[float]]:
    return pd.read_csv(table)[["healthy", "rust", "scab"]].fillna(9).to_numpy().tolist()  # type: ignore[no-any-return]


def test_named_columns_in_lists_and_in_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path / "a", FILES)
    make_files(tmp_path / "b", ["bee/1.png", "dog/1.png"])
    write(tmp_path / "a" / "t.csv", scan=FILES, kind=CLASSES)
    (tmp_path / "all.txt").write_text("a/t.csv:path=scan,label=kind\nb\n")
    source = opened(tmp_path / "all.txt")
    assert (len(source), source.classes) == (6, ["bee", "cat", "dog"])
    named = open_source("t.csv:path=scan,label=kind", split="train", data_root=tmp_path / "a")
    assert named.classes == ["cat", "dog"]
    monkeypatch.chdir(tmp_path)
    assert absolute("a/t.csv:path=scan,folder=../b") == f"{tmp_path}/a/t.csv:path=scan,folder=../b"
    with pytest.raises(DataError, match="is the dataset itself"):
        check_outside(tmp_path / "a" / "t.csv", "a/t.csv:path=scan")
    (tmp_path / "b.txt").write_text("a/absent.csv:path=scan\n")
    with pytest.raises(DataError, match=r"line 1: .*a/absent.csv:path=scan does not exist"):
        opened(tmp_path / "b.txt")


def test_named_columns_are_recorded_in_the_run(tmp_path: Path) -> None:
    """Every later command reads the same columns; the same command takes the run up, other columns make another one."""
    files = [path.stem for path in make_images(tmp_path / "images" / "train_images", 40)]
    write(
        tmp_path / "images" / "scans.csv", scan=files, grade=[str(k % 2) for k in range(40)],
        half=[str(k // 20) for k in range(40)],
    )  # fmt: skip
    place = "images/scans.csv:path=scan,label=grade"
    words = [word for word in pretrain_from_files(place, "data.workers=0") if word not in ("--out", "r")]
    said = succeed(tmp_path, words, before=BARE).err
    assert "its paths are the names of images below images, such as train_images/000.jpg." in said
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "scans"
    assert json.loads((run / "config.json").read_text())["data"]["source"] == str(tmp_path / place)
    shown = succeed(tmp_path, ["evaluate", str(run), "--protocol", "knn", "--device", "cpu"])
    assert "8 test images" in shown.out + shown.err
    succeed(tmp_path, ["embed", str(run), "--out", "features.csv", "--device", "cpu"])
    with (tmp_path / "features.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [str(k % 2) for k in range(40)]
    other = f"{tmp_path / 'images'}/scans.csv:path=scan,label=half"
    succeed(tmp_path, ["embed", str(run), "--data", other, "--out", "half.csv", "--device", "cpu"])
    with (tmp_path / "half.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [str(k // 20) for k in range(40)]
    metrics = (run / "metrics.jsonl").read_bytes()
    succeed(tmp_path, words, before=BARE)
    assert list((tmp_path / "runs").iterdir()) == [run] and (run / "metrics.jsonl").read_bytes() == metrics
    succeed(tmp_path, [other if word == place else word for word in words], before=BARE)
    assert sorted(one.name for one in (tmp_path / "runs").iterdir()) == ["images-scans", "scans"]
