"""The page of explore without a browser: its data, its scripts, thumbnails, and columns of CSV files."""

import base64
import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from matrix_ssl.errors import DataError
from matrix_ssl.report.explore.columns import read_columns
from matrix_ssl.report.explore.contents import Categories, Numbers
from matrix_ssl.report.explore.page import as_json, square, write_page
from matrix_ssl.report.explore.sheets import ACROSS, EACH, Sheets
from tests.support.explored import BACKWARDS, MARKUP, make_contents

PLACES = ["photos/a/1.jpg", "photos/a/2.jpg", "photos/b/1.jpg"]


def decoded(array):
    return np.frombuffer(base64.b64decode(array["bytes"]), array["kind"])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_every_byte_of_the_data_is_read_back(tmp_path):
    contents = make_contents(tmp_path, 30)
    text = write_page(tmp_path, contents).read_text(encoding="utf-8")
    (embedded,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(embedded)
    assert data == json.loads(json.dumps(as_json(contents, tmp_path)))
    assert [data["places"]["start"] + end for end in data["places"]["ends"]] == contents.places
    assert np.array_equal(decoded(data["neighbours"]["images"]).reshape(30, 6), contents.neighbours)
    similarities = decoded(data["neighbours"]["similarities"]) / data["neighbours"]["steps"]
    assert np.abs(similarities.reshape(30, 6) - contents.similarities).max() <= 0.5e-4
    assert np.array_equal(decoded(data["points"]).reshape(30, 2), square(contents.points).astype(np.float32))
    label, cluster, _, confidence, last = data["columns"]
    assert (label["name"], cluster["name"], last["name"]) == ("label", "cluster", MARKUP)
    assert np.array_equal(decoded(confidence["numbers"]), contents.columns[1].values, equal_nan=True)
    assert (tmp_path / unquote(data["folder"])).resolve() == Path("photos").resolve()


def test_names_stay_text_and_only_our_scripts_may_run(tmp_path):
    text = write_page(tmp_path, make_contents(tmp_path, 30)).read_text(encoding="utf-8")
    assert "<img src=x" not in text and "<i>one" not in text
    assert MARKUP.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026") in text
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "default-src &#39;none&#39;" in policy and "http" not in policy
    assert not re.search(r"\son\w+=", text.split("<script", 1)[0].replace("onerror=alert(1)", ""))


def test_the_same_contents_give_the_same_bytes(tmp_path):
    contents = make_contents(tmp_path, 30)
    first = write_page(tmp_path, contents).read_bytes()
    assert write_page(tmp_path, contents).read_bytes() == first


def test_a_name_that_is_not_unicode_keeps_its_bytes(tmp_path):
    folder = "caf\udce9 100%#"
    places = [f"{folder}/{name}" for name in ("\udcff.jpg", "b.jpg", "c\\udcff.jpg")]
    contents = dataclasses.replace(make_contents(tmp_path, 3), places=places, facts=[("Encoder", "\udce9\u202e")])
    text = write_page(tmp_path, contents).read_bytes().decode()
    (embedded,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(embedded)
    assert [data["places"]["start"] + end for end in data["places"]["ends"]] == places
    assert data["folder"].endswith("/caf%E9%20100%25%23/")
    assert "\\udce9\\u202e</span>" in text and "\u202e" not in text.replace(embedded, "")


def test_a_folder_on_a_different_drive_has_a_whole_address(tmp_path, monkeypatch):
    def relpath(*_):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", relpath)
    assert as_json(make_contents(tmp_path, 3), tmp_path)["folder"] == f"{Path('photos').resolve().as_uri()}/"


def test_images_that_are_not_files_have_no_address(tmp_path):
    contents = dataclasses.replace(make_contents(tmp_path, 3), files=False, places=["a.npz[0]", "a.npz[1]", "b.npz[0]"])
    data = as_json(contents, tmp_path)
    assert (data["folder"], data["places"]["start"]) == ("", "")


def test_a_map_without_extent_is_in_the_middle():
    assert square(np.zeros((3, 2))).tolist() == [[0, 0]] * 3
    wide = square(np.array([[0.0, 0.0], [10.0, 1.0]]))
    assert wide[:, 0].tolist() == [-0.96, 0.96] and np.allclose(wide[:, 1], [-0.096, 0.096])


def test_thumbnails_lie_where_the_page_looks_for_them(tmp_path):
    count, side = EACH + 20, 16
    colours = np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)
    squares = np.broadcast_to(colours[:, None, None], (count, side, side, 3))
    sheets = Sheets(tmp_path, count=count, side=side)
    sheets.add(np.arange(100), squares[:100])
    sheets.add(np.arange(101, count), squares[101:])  # one image could not be read
    sheets.finish()
    assert sheets.names == ["sheets/0000.jpg", "sheets/0001.jpg"]
    drawn = [pixels(tmp_path / name) for name in sheets.names]
    assert [one.shape[:2] for one in drawn] == [(ACROSS * side, ACROSS * side), (2 * side, ACROSS * side)]
    for image in (0, 17, 99, 255, EACH + 19):
        down, across = divmod(image % EACH, ACROSS)
        middle = drawn[image // EACH][down * side + side // 2, across * side + side // 2]
        assert np.abs(middle - colours[image]).max() <= 6, image
    assert np.abs(drawn[0][6 * side + 8, 4 * side + 8] - 128).max() < 3


def test_complete_sheets_stay_when_a_writer_was_stopped(tmp_path):
    grey = np.full((EACH, 8, 8, 1), 50, np.uint8)
    first = Sheets(tmp_path, count=2 * EACH, side=8)
    first.add(np.arange(EACH), grey)
    first.add(np.array([EACH]), grey[:1])  # starts the second sheet, which is lost
    before = (tmp_path / first.names[0]).read_bytes()
    second = Sheets(tmp_path, count=2 * EACH, side=8)
    assert second.start == EACH
    second.add(np.arange(EACH, 2 * EACH), 2 * grey)
    second.finish()
    assert (tmp_path / first.names[0]).read_bytes() == before
    assert Sheets(tmp_path, count=2 * EACH, side=8).start == 2 * EACH


def test_columns_of_a_csv_file(tmp_path):
    path = tmp_path / "more.csv"
    path.write_text("site;path;age\nnorth;a/2.jpg;1.5\n<b>;photos/b/1.jpg;\n", encoding="utf-8-sig")
    (site, age), sentence = read_columns(path, PLACES)
    assert isinstance(site, Categories) and isinstance(age, Numbers)
    assert (site.name, site.values, site.codes.tolist()) == ("site", ["<b>", "north"], [-1, 1, 0])
    assert np.array_equal(age.values, [np.nan, 1.5, np.nan], equal_nan=True)
    assert sentence == "more.csv has a row for 2 of the 3 images."


def test_nan_is_no_value_in_a_column_of_numbers_and_a_name_among_names(tmp_path):
    path = tmp_path / "more.csv"
    path.write_text("path,age,site\na/1.jpg,0.0,nan\na/2.jpg,NaN,north\nb/1.jpg,1.5,nan\n")
    (age, site), _ = read_columns(path, ["photos/a/1.jpg", "photos/a/2.jpg", "photos/b/1.jpg"])
    assert isinstance(age, Numbers) and np.array_equal(age.values, [0.0, np.nan, 1.5], equal_nan=True)
    assert isinstance(site, Categories) and site.values == ["nan", "north"]


def test_nan_is_no_value_among_few_whole_numbers_which_are_in_their_order(tmp_path):
    places = [f"photos/{i}.jpg" for i in range(5)]
    path = tmp_path / "more.csv"
    path.write_text("path,fold\n0.jpg,10\n1.jpg,nan\n2.jpg,2\n3.jpg,NaN\n4.jpg,\n")
    (fold,), _ = read_columns(path, places)
    assert isinstance(fold, Categories) and fold.values == ["2", "10"]
    assert fold.codes.tolist() == [1, -1, 0, -1, -1]


def test_paths_beside_the_csv_file_and_few_whole_numbers(tmp_path):
    places = [str(tmp_path / "x" / f"{i}.png") for i in range(3)]
    path = tmp_path / "more.csv"
    path.write_text("file,fold\nx/0.png,1\nx/1.png,2\nx/2.png,1\n")
    (fold,), _ = read_columns(path, places)
    assert isinstance(fold, Categories) and fold.values == ["1", "2"] and fold.codes.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("texts", "is_number"),
    [
        ([f"{i:03d}" for i in range(20)], False),  # numbers of rooms
        ([f"12_{i:02d}" for i in range(20)], False),
        ([str(2**60 + i) for i in range(20)], False),
        ([str(2**53 - i) for i in range(20)], True),
        (["0", "-0.5", "+1e3", ".5", "7.", *map(str, range(20, 40))], True),
    ],
)
def test_names_that_look_like_numbers_stay_names(tmp_path, texts, is_number):
    places = [f"photos/{i}.jpg" for i in range(len(texts))]
    path = tmp_path / "more.csv"
    path.write_text("path,room\n" + "".join(f"{place},{text}\n" for place, text in zip(places, texts, strict=True)))
    (room,), _ = read_columns(path, places)
    if is_number:
        assert isinstance(room, Numbers) and room.values.tolist() == [float(text) for text in texts]
    else:
        assert isinstance(room, Categories) and [room.values[code] for code in room.codes] == texts


def test_labels_that_cannot_be_judged_have_no_list(tmp_path):
    contents = make_contents(tmp_path, 10)
    for issues, count in ((contents.issues, 1), (None, 0)):
        text = write_page(tmp_path, dataclasses.replace(contents, issues=issues)).read_text(encoding="utf-8")
        assert text.count('id="tab-issues"') == text.count('id="list-issues"') == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na/1.jpg\n", "one column more"),
        ("path,x,x\na/1.jpg,1,2\n", "the heading 'x' is repeated"),
        ("path,x\na/1.jpg\n", "row 2 has 1 values and the headings are 2"),
        ("path,x\n1.jpg,1\n", "none of its 1 paths is one of the images. The first is '1.jpg'"),
        ("path,x\na/1.jpg,1\nphotos/a/1.jpg,2\n", "rows 2 and 3 are about the same image"),
        ("Datei;Größe\na/1.jpg;1\n".encode("cp1252"), "is not in UTF-8, from its byte 8 on: save it as CSV UTF-8, or"),
    ],
)
def test_bad_csv_files_are_named_with_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "more.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read_columns(path, PLACES)
    assert "more.csv" in str(error.value)


def test_tables_of_spreadsheets_are_read(tmp_path):
    places = [f"photos/{kind}/{i:02d}.jpg" for kind in "ab" for i in range(15)]
    rows = [(f"{kind}/{i:02d}", f"{i},5", f"{i},5 mm", f"1.{i:03d},5") for kind in "ab" for i in range(15)]
    text = "\n".join(";".join(row) for row in [("Datei", "Länge", "Maß", "Preis"), *rows])
    path = tmp_path / "more.csv"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        (length, size, price), sentence = read_columns(path, places)
        assert sentence == "more.csv has a row for 30 of the 30 images."
        assert (length.name, length.values.tolist()) == ("Länge", [float(i) + 0.5 for i in range(15)] * 2)
        assert isinstance(size, Categories) and isinstance(price, Categories)  # no numbers
    path.write_text(text.replace(",", "{").replace(";", ",").replace("{", ";"), encoding="utf-8")
    assert isinstance(read_columns(path, places)[0][0], Categories)  # 3;5, whatever that is


def test_paths_without_extension_name_the_only_image_that_has_one(tmp_path):
    places = ["photos/a/1.jpg", "photos/a/1.png", "photos/a/2.jpg", "photos/a/3.jpg", "photos/a/3"]
    path = tmp_path / "more.csv"
    path.write_text("id,x\na/1,one\n2,two\n3,three\n")
    ((column,), _) = read_columns(path, places)
    assert [column.values[code] if code >= 0 else "" for code in column.codes] == ["", "", "two", "", "three"]


def test_the_licences_are_in_the_package():
    from matrix_ssl.report.explore import page

    folder = page._HERE / "vendor"
    (first, *_) = (folder / "regl-scatterplot.js").read_text().splitlines()
    licences = (folder / "LICENSES.txt").read_text()
    parts = re.findall(r"[\w@/-]+@[\d.]+", first)
    assert len(parts) >= 9
    for part in parts:
        assert f"---- {part} ----" in licences


def test_names_that_change_the_direction_are_raw_in_the_data(tmp_path):
    data = as_json(make_contents(tmp_path, 10), tmp_path)
    assert data["places"]["ends"][1].endswith(BACKWARDS)  # what is downloaded; the page shows it escaped
