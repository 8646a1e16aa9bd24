"""Subsets of labels: every class in its part, small inside large, and lists of names there and back."""

import os
import shutil
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit

from matrix_ssl.config.system import limited, with_slashes
from matrix_ssl.data import open_source
from matrix_ssl.data.base import MemorySource, Places, Source
from matrix_ssl.errors import ConfigError, DataError, RunFolderError
from matrix_ssl.evaluate.trained import label_subsets
from matrix_ssl.evaluate.trained.label_subsets import from_list, list_names, match_names, store, stratified


def labelled(labels, classes=None):
    """Images of these labels."""
    labels = np.asarray(labels, dtype=np.int64)
    names = [f"class {i}" for i in range(int(labels.max()) + 1)] if classes is None else classes
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    return MemorySource("set", images, Places.whole(["set"], [len(labels)]), labels=labels, classes=names)


class Files(Source):
    """Images at given places, in one class for every first letter of their names."""

    def __init__(self, *places):
        letters = [place.rpartition("/")[2][0] for place in places]
        classes = sorted(set(letters))
        super().__init__("files", channels=3, labels=np.array([classes.index(x) for x in letters]), classes=classes)
        self.places = places

    def __len__(self):
        return len(self.places)

    def read(self, index):
        raise NotImplementedError

    def where(self, index):
        return self.places[index]

    def subset(self, indices):
        raise NotImplementedError


def test_names_on_windows_have_either_separator(monkeypatch):
    monkeypatch.setattr(label_subsets, "with_slashes", partial(with_slashes, separator="\\"))
    places = [r"C:\x\a\1.png", r"C:\x\b\1.png", r"C:\x.zip/c/2.png"]
    names = [r"b\1.png", "a/1.png", "2.png"]
    assert match_names(places, names, where="t.txt", dataset="x").tolist() == [1, 0, 2]
    assert list_names(Files(*places), [0, 1, 2]) == ["a/1.png", "b/1.png", "2.png"]


def test_many_images_of_one_name_in_folders_of_their_own_take_no_minutes():
    places = [f"scans/{number}/000000.dcm" for number in range(20_000)]
    with limited(30):
        names = list_names(Files(*places), range(0, len(places), 2))
        found = match_names(places, names, where="t.txt", dataset="x")
    assert names[1] == "2/000000.dcm" and found.tolist() == list(range(0, len(places), 2))


@pytest.mark.parametrize("kind", [PurePosixPath, PureWindowsPath])
@pytest.mark.parametrize("path", [r"C:\x\a b.png", "C:/x/1.png", r"x\y/1.png", "1.png"])
def test_paths_with_slashes_are_those_of_pathlib(kind, path):
    assert with_slashes(path, separator="\\" if kind is PureWindowsPath else "/") == kind(path).as_posix()


UNLABELLED = MemorySource(
    "bare", torch.zeros(3, 1, 2, 2, dtype=torch.uint8), Places.whole(["bare"], [3]), labels=None, classes=None
)


class TestStratified:
    @pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
    def test_takes_the_part_of_every_class(self, fraction):
        source = labelled(np.repeat([0, 1, 2, 3], [400, 100, 30, 1]))
        chosen = stratified(source, fraction)
        counts = np.bincount(source.labels[chosen], minlength=4)
        assert counts.tolist() == [max(1, round(fraction * n)) for n in (400, 100, 30, 1)]
        assert (np.diff(chosen) > 0).all()

    def test_has_the_sizes_of_sklearn_where_they_are_whole(self):
        source = labelled(np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [200, 100, 50])))
        splitter = StratifiedShuffleSplit(1, train_size=0.1, random_state=0)
        expected, _ = next(splitter.split(np.zeros(350), source.labels))
        found = np.bincount(source.labels[stratified(source, 0.1)])
        assert found.tolist() == np.bincount(source.labels[expected]).tolist() == [20, 10, 5]

    @given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 1), st.floats(0.01, 1))
    def test_small_lies_in_large(self, labels, one, other):
        labels = np.concatenate([np.arange(5), labels])
        small, large = sorted((one, other))
        source = labelled(labels)
        assert set(stratified(source, small, seed=3)) <= set(stratified(source, large, seed=3))

    def test_depends_on_the_seed_alone(self):
        source = labelled(np.repeat([0, 1], 50))
        torch.manual_seed(0)
        first = stratified(source, 0.1, seed=1)
        np.random.default_rng(1).random(5)
        torch.manual_seed(9)
        np.testing.assert_array_equal(stratified(source, 0.1, seed=1), first)
        draws = {tuple(stratified(source, 0.1, seed=seed)) for seed in range(20)}
        assert len(draws) == 20
        assert tuple(first) == (4, 13, 15, 37, 43, 53, 64, 88, 89, 92)  # on every machine and in every release

    def test_is_uniform(self):
        source = labelled(np.zeros(10))
        drawn = np.bincount(np.concatenate([stratified(source, 0.3, seed=seed) for seed in range(2000)]))
        assert drawn.sum() == 6000
        assert ((drawn - 600) ** 2 / (600 * 0.7)).sum() < 30  # chi-squared of 9 degrees of freedom: p < 0.0005

    def test_mistakes(self):
        for fraction in (0.0, -0.1, 1.01, float("nan")):
            with pytest.raises(ConfigError, match=rf"the labelled fraction is {fraction}; expected"):
                stratified(labelled([0, 1]), fraction)
        with pytest.raises(DataError, match="'bare' has no labels: put each class"):
            stratified(UNLABELLED, 0.1)
        with pytest.raises(DataError, match=r"'set': 1 of the 3 classes have no image \('cat'\)"):
            stratified(labelled([0, 2], ["ant", "cat", "dog"]), 0.5)


class TestLists:
    IMAGENET = ("n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG", "n02/n02_10.JPEG")

    def imagenet(self):
        places = [f"/data/train/{name}" for name in self.IMAGENET]
        source = Files(*places)
        source.labels, source.classes = np.array([0, 0, 1, 1]), ["n01", "n02"]
        return source

    def written(self, folder, text):
        path = folder / "list.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("n02_10.JPEG\nn01_1.JPEG\n", [3, 0]),
         ("n02_10.JPEG\r\n\r\n  n01_1.JPEG  ", [3, 0]),
         ("\ufeffn02/n02_1.JPEG\n./n01/n01_2.JPEG\n", [2, 1]),
         ("/data/train/n02/n02_1.JPEG\ntrain/n01/n01_2.JPEG\n", [2, 1])],
    )  # fmt: skip
    def test_name_images_by_the_end_of_their_path(self, tmp_path, text, expected):
        assert from_list(self.imagenet(), self.written(tmp_path, text)).tolist() == expected

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [("n01_1.JPEG\nn02_1.JPEG\nn03_1.JPEG\n1.JPEG\n", r"2 of its 4 names match no image of 'files' \('n03_1"),
         ("n01_1.JPEG\nn02_1.JPEG\nn01_1.JPEG\n", r"1 names occur twice \('n01_1.JPEG'\)"),
         ("n01_1.JPEG\nn02_1.JPEG\nn01/n01_1.JPEG\n", r"1 images are named twice in different words \('/data"),
         ("n01_1.JPEG\nn01_2.JPEG\n", r"1 of the 2 classes have no image \('n02'\): add at least one"),
         ("".join(f"{i}.JPEG\n" for i in range(9)), r"9 of its 9 names .* \('0.JPEG', .*'7.JPEG' and 1 more\)"),
         ("", "is empty: give a list of file names"),
         (" \n\n", "is empty: give a list of file names"),
         (b"\xff\xd8\xff\xe0 an image", "is not UTF-8 text")],
    )  # fmt: skip
    def test_that_do_not_fit(self, tmp_path, text, sentence):
        path = self.written(tmp_path, text)
        with pytest.raises(DataError, match=sentence) as caught:
            from_list(self.imagenet(), path)
        assert str(path) in str(caught.value)

    def test_of_names_that_several_images_have(self, tmp_path):
        source = Files("x/cat/1.jpg", "x/dog/1.jpg", "x/dog/2.jpg")
        source.labels = np.array([0, 1, 1])
        source.classes = ["cat", "dog"]
        with pytest.raises(DataError, match=r"1 names match several images \('1.jpg'\): write more of their paths"):
            from_list(source, self.written(tmp_path, "1.jpg\n2.jpg\n"))
        assert from_list(source, self.written(tmp_path, "cat/1.jpg\n2.jpg\n")).tolist() == [0, 2]

    def test_that_cannot_be_read(self, tmp_path):
        with pytest.raises(DataError, match=r"absent\.txt does not exist"):
            from_list(self.imagenet(), tmp_path / "absent.txt")
        with pytest.raises(DataError, match="cannot be read: Is a directory"):
            from_list(self.imagenet(), tmp_path)
        with pytest.raises(DataError, match="'bare' has no labels: put each class"):
            from_list(UNLABELLED, self.written(tmp_path, "bare[0]\n"))


class TestStoring:
    def assert_comes_back(self, path, source, indices):
        store(path, source, indices)
        np.testing.assert_array_equal(from_list(source, path), indices)

    def test_of_a_packed_set_or_one_in_memory(self, tmp_path):
        source = open_source("digits", split="train", data_root=None)
        indices = stratified(source, 0.1)
        self.assert_comes_back(tmp_path / "list.txt", source, indices)
        first = (tmp_path / "list.txt").read_text().splitlines()[0]
        assert first == source.where(int(indices[0])) and first.startswith("digits[")

    def test_of_a_folder_with_the_shortest_names_that_will_do(self, tmp_path):
        places = ["/a/cat/c1.jpg", "/a/cat/1.jpg", "/a/dog/1.jpg", "/b/dog/1.jpg", "1.jpg"]
        source = Files(*places)
        source.labels, source.classes = np.array([0, 0, 1, 1, 1]), ["cat", "dog"]
        self.assert_comes_back(tmp_path / "list.txt", source, [3, 0, 1, 2])
        assert (tmp_path / "list.txt").read_text() == "b/dog/1.jpg\nc1.jpg\ncat/1.jpg\na/dog/1.jpg\n"

    def test_of_a_real_folder_that_moves(self, tmp_path):
        from PIL import Image

        for name in ("cat/1.png", "cat/ü 2.png", "dog/1.png", "dog/3.png"):
            path = tmp_path / "here" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
        indices = [3, 1, 0]
        self.assert_comes_back(
            tmp_path / "list.txt", open_source(str(tmp_path / "here"), split="train", data_root=None), indices
        )
        shutil.move(tmp_path / "here", tmp_path / "there")
        moved = open_source(str(tmp_path / "there"), split="train", data_root=None)
        assert from_list(moved, tmp_path / "list.txt").tolist() == indices

    @pytest.mark.parametrize(
        "name",
        [
            "cat/1\n.jpg",
            "cat/ 1.jpg",
            os.fsdecode(b"cat/\xff.jpg"),
            "cat/1.jpg\u2028",
            'cat/"1".jpg',
            '"',
            '""',
            "1\u2028.jpg",
            "1\f.jpg",
            "1\r.jpg",
        ],
    )
    def test_of_names_that_a_line_cannot_hold_as_they_are(self, tmp_path, name):
        path = tmp_path / "list.txt"
        self.assert_comes_back(path, Files(name, "cat/2.jpg"), [0, 1])
        assert path.read_text().split("\n")[1] == "2.jpg"

    def test_of_images_at_the_same_place(self, tmp_path):
        with pytest.raises(DataError, match=r"two images have the same place x/1\.jpg"):
            store(tmp_path / "list.txt", Files("x/1.jpg", "x/1.jpg"), [0])

    def test_where_no_file_can_be(self, tmp_path):
        with pytest.raises(RunFolderError, match=r"Cannot write .*absent.list\.txt"):
            store(tmp_path / "absent" / "list.txt", Files("x/1.jpg"), [0])


def test_the_published_list_of_one_percent(tmp_path):
    """The first lines of SimCLR's list as they are written there, against folders as ImageNet has them."""
    names = ["n02097474_3691.JPEG", "n04515003_15866.JPEG", "n02086079_17603.JPEG", "n03649909_24480.JPEG"]
    path = Path(tmp_path / "1percent.txt")
    path.write_text("\n".join(names) + "\n")
    places = [f"/imagenet/train/{name.partition('_')[0]}/{name}" for name in [*reversed(names), "n02097474_369.JPEG"]]
    assert from_list(Files(*places), path).tolist() == [3, 2, 1, 0]
