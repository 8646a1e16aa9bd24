"""Datasets that are objects of Python: what is accepted, what it becomes, that the same content is the same data."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset

from matrix_ssl.config.reading import COLOURS, Reading
from matrix_ssl.data import has_test_split, open_source
from matrix_ssl.data.base import Source
from matrix_ssl.data.files.images import decode_image
from matrix_ssl.data.objects import as_data, in_colour
from matrix_ssl.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(pixels) for pixels in PIXELS]


def opened(data: object, split: str = "train") -> Source:
    return open_source(as_data(data), split=split, data_root=None)  # type: ignore[arg-type]


class Items(Dataset):
    """A dataset of PyTorch over a list."""

    def __init__(self, items: list, classes: list[str] | None = None):
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        item = self.items[index]
        return item() if callable(item) else item


@pytest.mark.parametrize("form", [
    PIXELS, PIXELS.transpose(0, 3, 1, 2), PIXELS[..., ::-1][..., ::-1], PIXELS / 255, (PIXELS / 255).astype(np.float32),
    torch.from_numpy(PIXELS), torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255, IMAGES, Items(IMAGES),
    Items(list(torch.from_numpy(PIXELS).permute(0, 3, 1, 2))), Items([{"image": image} for image in IMAGES]),
    Items([(image, {"boxes": []}) for image in IMAGES]),
])  # fmt: skip
def test_the_same_images_in_any_form_are_the_same_data(form: object) -> None:
    source = opened(form)
    assert source.images is not None
    assert np.array_equal(source.images.numpy(), PIXELS.transpose(0, 3, 1, 2))
    assert (source.digest, source.labels, source.channels) == (opened(PIXELS).digest, None, 3)
    assert source.where(2).endswith("[2]")


def test_other_images_or_labels_are_other_data() -> None:
    changed = PIXELS.copy()
    changed[3, 4, 5, 1] ^= 1
    labels = np.arange(6) % 2
    sources = [opened(PIXELS), opened(changed), opened(PIXELS[::-1]), opened((PIXELS, labels)), opened(PIXELS[:5])]
    assert len({source.digest for source in sources}) == 5


@pytest.mark.parametrize("form", [
    PIXELS.astype(np.int64), PIXELS.astype(np.float64), PIXELS / 255 - 0.1, np.full((2, 4, 4), np.nan), PIXELS[..., :2],
    PIXELS[0], PIXELS[0, 0], PIXELS[:0], np.zeros((2, 3, 5, 3), np.uint8), PIXELS.astype(object), PIXELS > 3,
    torch.zeros(2, 8, 8, dtype=torch.long),
])  # fmt: skip
def test_other_arrays_are_refused_in_one_sentence(form: object) -> None:
    with pytest.raises(DataError) as error:
        opened(form)
    message = str(error.value)
    assert "(n, h, w), (n, h, w, 3) or (n, 3, h, w), uint8 or floating point in [0, 1]." in message
    assert str(tuple(form.shape)) in message and message.count("\n") == 0  # type: ignore[attr-defined]


def test_grey_arrays_have_one_channel_and_three_where_an_encoder_takes_three() -> None:
    grey = opened(PIXELS[..., 0])
    assert (grey.channels, grey.images.shape) == (1, (6, 1, 10, 12))  # type: ignore[union-attr]
    assert in_colour(grey, 1) is grey
    colour = in_colour(grey, 3)
    assert colour.digest == opened(PIXELS[..., :1].repeat(3, axis=3)).digest != grey.digest
    assert torch.equal(colour.subset([4]).read(0), colour.read(4))
    mixed = opened(Items([PIXELS[0, ..., 0], PIXELS[1]]))
    assert mixed.channels == 3 and mixed.read(0).shape == mixed.read(1).shape


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 4, 16])
def test_arrays_of_other_channels_are_read_as_files_of_the_same_numbers(channels: int, dtype: type) -> None:
    array = (np.random.default_rng(0).random((5, 17, 19, channels)) * 200).astype(dtype)
    reading = Reading(channels=-1, value_range=(0.0, 210.0))
    for form in (array, array.transpose(0, 3, 1, 2), torch.from_numpy(array), array[..., ::-1][..., ::-1]):
        source = open_source(as_data(form), split="train", data_root=None, reading=reading)
        assert (source.channels, source.dtype, source.where(2)) == (channels, torch.float32, "array[2]")
        file = io.BytesIO()
        np.save(file, array[2])
        assert torch.equal(source.read(2), decode_image(file.getvalue(), "x", reading=source.reading))
        assert np.array_equal(source.values(2), array[2])
        assert source.digest == as_data(array).train().digest  # type: ignore[union-attr]
    assert torch.equal(source.subset([2]).read(0), source.read(2))
    for other, words in ((COLOURS, r"colours \(three channels\)"), (Reading(channels=3), "3-channel images")):
        with pytest.raises(DataError, match=f"The array has {channels}-channel images, but {words} are needed"):
            open_source(as_data(array), split="train", data_root=None, reading=other)


@pytest.mark.parametrize("shape", [(4, 6, 7), (4, 6, 7, 1), (4, 3, 6, 7), (4, 6, 7, 3)])
def test_arrays_of_16_bits_keep_them(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    source = open_source(as_data(array), split="train", data_root=None, reading=Reading(channels=-1))
    assert source.channels == (1 if 3 not in shape else 3)
    levels = (source.read(1) * 65535).round().numpy().astype(np.uint16)
    assert np.array_equal(np.sort(levels, axis=None), np.sort(array[1], axis=None))


@pytest.mark.parametrize(("labels", "classes", "expected", "names"), [
    ([0, 1, 0, 1, 2, 2], None, [0, 1, 0, 1, 2, 2], ["0", "1", "2"]),
    ([0, 1, 0, 1, 2, 2], ["a", "b", "c"], [0, 1, 0, 1, 2, 2], ["a", "b", "c"]),
    (list("baabcc"), None, [1, 0, 0, 1, 2, 2], ["a", "b", "c"]),
    (list(torch.tensor([1, 1, 0, 0, 0, 0])), None, [1, 1, 0, 0, 0, 0], ["0", "1"]),
    ([-1] * 6, None, None, None),
    ([0.5] * 6, None, None, None),
    ([None] * 6, None, None, None),
])  # fmt: skip
def test_labels_of_items(labels: list, classes: list | None, expected: list | None, names: list | None) -> None:
    for items in (list(zip(IMAGES, labels, strict=True)),
                  [{"img": image, "label": label} for image, label in zip(IMAGES, labels, strict=True)]):  # fmt: skip
        source = opened(Items(items, classes))
        assert (None if source.labels is None else source.labels.tolist(), source.classes) == (expected, names)
    if classes:
        part = opened(Subset(Items(items, classes), [5, 0]))
        assert part.labels.tolist() == [2, 0] and part.classes == names  # type: ignore[union-attr]


def test_labels_of_arrays_and_files(tmp_path: Path) -> None:
    for image, name in zip(IMAGES, "abcdef", strict=True):
        image.save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in "abcdef"]
    for images in (PIXELS, files, np.array([str(file) for file in files])):
        numbers, texts = opened((images, np.arange(6) % 3)), opened((images, list("xyzxyz")))
        assert numbers.labels.tolist() == texts.labels.tolist() == [0, 1, 2, 0, 1, 2]  # type: ignore[union-attr]
        assert (numbers.classes, texts.classes) == (["0", "1", "2"], ["x", "y", "z"])
    assert torch.equal(opened(files).read(3), torch.from_numpy(PIXELS[3]).permute(2, 0, 1))
    with pytest.raises(DataError, match="expected 6 integer labels"):
        opened((PIXELS, [0, 1]))


def test_files_may_be_named_by_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    IMAGES[0].save(tmp_path / "a.png")
    assert opened(["~/a.png"]).read(0).shape == (3, 10, 12)


def test_items_of_several_shapes_are_read_when_they_are_needed() -> None:
    items = Items([(IMAGES[0], 0), (IMAGES[1].resize((7, 9)), 0), (IMAGES[2], 1)])
    source = opened(items)
    assert source.images is None and source.labels.tolist() == [0, 0, 1]  # type: ignore[union-attr]
    assert source.read(1).shape == (3, 9, 7) and source.subset([2]).where(0) == "Items[2]"
    assert source.digest == opened(Items(items.items)).digest != source.subset([0, 2]).digest
    assert source.subset([0, 2]).digest == opened(Items([items.items[0], items.items[2]])).digest


@pytest.mark.parametrize("several_shapes", [False, True])
@pytest.mark.parametrize("labels", [None, [0, 1, 0], ["a", 1, "b"]])
def test_images_of_16_bits_from_pillow_have_the_white_that_is_set(
    tmp_path: Path, labels: list | None, several_shapes: bool
) -> None:
    levels = [
        np.random.default_rng(k).integers(0, 4000, (9, 9 + k * several_shapes)).astype(np.uint16) for k in range(3)
    ]
    items = [Image.fromarray(each) for each in levels]
    data = Items(items if labels is None else list(zip(items, labels, strict=True)))
    for k, image in enumerate(items):
        image.save(tmp_path / f"{k}.png")
    dark = opened(data)
    assert dark.remarks[-1:] == opened(str(tmp_path)).remarks
    assert any("without labels" in remark for remark in dark.remarks) == (labels == ["a", 1, "b"])
    assert "use --set data.white_level=4095" in dark.remarks[-1]
    reading = Reading(white_level=4095)
    source, files = (open_source(as_data(each), split="train", data_root=None, reading=reading)
                     for each in (data, str(tmp_path)))  # fmt: skip
    for k in range(3):
        torch.testing.assert_close(source.read(k), files.read(k), rtol=0, atol=0)
    np.testing.assert_array_equal(source.labels, dark.labels)
    assert source.unlabelled_because == dark.unlabelled_because
    assert source.remarks == dark.remarks[:-1]


def test_images_of_pillow_stay_as_they_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    IMAGES[0].save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    grey = Image.fromarray(PIXELS[1, ..., 0])
    assert opened([turned, grey]).read(0).shape == (3, 12, 10)
    assert turned.size == (12, 10) and turned.getexif()[0x0112] == 6


class Odd(Items):
    """Six images, one of which raises an error, of a length that may be wrong."""

    def __init__(self, length: Any = 6, failing: int = -1):
        super().__init__([(image, 0) for image in IMAGES])
        self.length, self.failing = length, failing

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index // (index != self.failing))


@pytest.mark.parametrize(
    ("length", "failing", "message"),
    [
        (7, -1, r"^Odd\[6\] cannot be read \(IndexError: list index out of range\); remove it from the dataset\.$"),
        (6, 4, r"^Odd\[4\] cannot be read \(ZeroDivisionError: "),
        (-1, -1, r"^Odd: its __len__ is not the number of its images \(__len__\(\) should return >= 0\)\.$"),
        (2.5, -1, r"^Odd: its __len__ is not the number of its images \('float' object cannot"),
        (2**61, -1, r"^Odd: its __len__ is not the number of its images \("),
    ],
)
def test_datasets_that_break_their_promises(length: Any, failing: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(Odd(length, failing))


@pytest.mark.parametrize(("labels", "why"), [
    ([0, 1, "a", 1, 1, 1], r"the label of Items\[2\] is 'a', and all have to be whole numbers from 0 on, or all texts"),
    ([0, 1, 2, -1, 1, 1], r"the label of Items\[3\] is -1"),
    (["a", "b", "c", "d", 1, "e"], r"the label of Items\[4\] is 1"),
    ([2**70] * 6, r"the label of Items\[0\] is 1180591620717411303424"),
    ([None] * 6, ""),
])  # fmt: skip
def test_labels_that_are_left_out_are_named(labels: list, why: str) -> None:
    source = opened(Items(list(zip(IMAGES, labels, strict=True))))
    assert source.labels is None
    assert [bool(re.match(f"Items is taken without labels: {why}", remark)) for remark in source.remarks] == [
        True
    ] * bool(why)


@pytest.mark.parametrize("tensor", [
    torch.zeros(6, 3, 8, 8).to_sparse(), torch.zeros(6, 3, 8, 8, device="meta"),
    torch.zeros(6, 3, 8, 8, dtype=torch.complex64).conj(),
])  # fmt: skip
def test_tensors_without_numbers_to_read(tensor: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"The array is .* of shape \(6, 3, 8, 8\): expected images"):
        opened(tensor)


@pytest.mark.parametrize(("data", "message"), [
    (3, "Images of type int: expected a folder"),
    ((PIXELS, np.array([{}] * 6)), "The labels: expected 6 whole numbers or texts, got objects of other types"),
    ({"a": 1}, "Images of type dict: expected a folder"),
    ([], "list contains no images"),
    (Items([]), "Items contains no images"),
    (Items(["text"]), "expected an image of Pillow, an array or a tensor, not str"),
    (Items([{"picture": IMAGES[0]}]), "has the keys picture: expected one of image, img"),
    (Items([lambda: np.random.rand(8, 8, 3)]), "is a different image each time: remove its random transforms"),
    (Items([torch.randn(3, 8, 8)]), "with values from -"),
    (type("Stream", (IterableDataset,), {"__iter__": lambda self: iter(IMAGES)})(), "Stream is a stream"),
])  # fmt: skip
def test_what_is_no_dataset_of_images_is_refused(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        opened(data)


def test_a_broken_item_is_named() -> None:
    def broken() -> None:
        raise OSError("cut")

    with pytest.raises(DataError, match=r"Items\[1\] cannot be read \(cut\); remove it from the dataset"):
        opened(Items([IMAGES[0], broken]))


def test_a_path_is_always_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    IMAGES[0].save(tmp_path / "digits" / "0.png")
    assert len(opened("digits")) == 1437 and len(opened(Path("digits"))) == 1
    assert as_data([tmp_path / "digits", "cifar10"]) == (str(tmp_path / "digits"), "cifar10")


def test_images_of_another_process_are_asked_for() -> None:
    with pytest.raises(DataError, match=r"were in the memory of a program \(array\).*name images with --data"):
        open_source("memory:array", split="train", data_root=None)


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["u", "v"])})
    return datasets.Dataset.from_dict({"image": IMAGES, "label": [0, 1] * 3}, features=features)


def test_a_dataset_of_hugging_face(hugging_face: Any, tmp_path: Path) -> None:
    source = opened(hugging_face)
    assert (source.labels.tolist(), source.classes) == ([0, 1] * 3, ["u", "v"])  # type: ignore[union-attr]
    assert np.array_equal(source.images.numpy(), PIXELS.transpose(0, 3, 1, 2))  # type: ignore[union-attr]
    assert not has_test_split(as_data(hugging_face), data_root=None)
    hugging_face.save_to_disk(tmp_path / "saved")
    assert open_source(f"hf:{tmp_path / 'saved'}", split="train", data_root=None).digest == source.digest


def test_splits_and_streams_of_hugging_face(hugging_face: Any) -> None:
    import datasets

    both = datasets.DatasetDict(train=hugging_face, test=hugging_face.select([0, 1]))
    assert [len(opened(both, split)) for split in ("train", "test")] == [6, 2]
    with pytest.raises(DataError, match="is a stream"):
        opened(hugging_face.to_iterable_dataset())


@pytest.mark.parametrize(("images", "remedy"), [
    (np.zeros((4, 8, 8, 3), dtype=np.uint8), "pass a pair (images, labels)"),
    (np.zeros((4, 20, 20, 3), dtype=np.uint16), "pass a pair (images, labels)"),
    (["a.png", "b.png"], "pass a pair (images, labels)"),
    ([np.zeros((8, 8, 3), dtype=np.uint8)] * 2, "make every item a pair (image, label)"),
])  # fmt: skip
def test_the_remedy_for_absent_labels_is_one_for_such_data(images: Any, remedy: str) -> None:
    source = opened(images)
    with pytest.raises(DataError) as refused:
        source.labelled()
    assert str(refused.value) == f"{source.name!r} has no labels: {remedy}."
