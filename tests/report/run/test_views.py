"""The strip of views and the neighbours over a training: what a run keeps for its page, and what the page shows."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import matrix_ssl
from matrix_ssl.api.records import keep_views
from matrix_ssl.config import DataConfig, RunConfig, ViewConfig, to_dict
from matrix_ssl.data.base import MemorySource, Places
from matrix_ssl.data.loading import TrainingBatches
from matrix_ssl.data.views.first_views import first_views
from matrix_ssl.evaluate.followed import Followed, followed
from matrix_ssl.report import write_report
from matrix_ssl.report.run.followed import read_followed
from matrix_ssl.report.run.views import describe, strip
from matrix_ssl.runs.folder import identity
from tests.support.pages import check_page, read_page
from tests.support.synthetic_run import make_run

DATA = DataConfig(source="drawn", image_size=12, mean=(0.4,) * 3, std=(0.2,) * 3)
VIEW = ViewConfig(crop_scale=(0.3, 1.0), flip=0.5, grayscale=0.2)
CONFIG = RunConfig(recipe="small", data=DATA, views=(dataclasses.replace(VIEW, count=3),), batch_size=16, seed=5)


def drawn(count: int = 60) -> MemorySource:
    images = torch.randint(0, 256, (count, 3, 20, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return MemorySource("drawn", images, Places.whole(["<b>drawn.npz"], [count]), labels=None, classes=None)


def test_the_views_are_those_of_the_first_step():
    source = drawn()
    batches = TrainingBatches(
        source, DATA, CONFIG.views, batch_size=16, seed=5, rank=0, world_size=1, device=torch.device("cpu"),
        dtype=torch.float32,
    )  # fmt: skip
    batch = next(iter(batches.iterate(0, 1)))
    arrays = first_views(CONFIG, source)
    assert arrays["where"].tolist() == [source.where(i) for i in batch.indices[:6].tolist()]
    for row, index in enumerate(batch.indices[:6]):
        assert np.array_equal(arrays[f"image_{row}"], source.images[index].permute(1, 2, 0).numpy())
        for number in (1, 2):
            seen = (batch.views[number - 1][row] * 0.2 + 0.4).permute(1, 2, 0).numpy() * 255
            np.testing.assert_allclose(arrays[f"view_{row}_{number}"], seen, atol=0.51)
    assert "view_0_3" not in arrays


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_views_of_any_number_of_channels_can_be_seen(channels):
    source = drawn()
    source.images = torch.rand(60, channels, 120, 150)
    source.channels = channels
    data = dataclasses.replace(DATA, mean=(0.5,) * channels, std=(0.3,) * channels)
    arrays = first_views(dataclasses.replace(CONFIG, data=data), source)
    assert arrays["image_0"].shape == (77, 96, 1 if channels == 1 else 3)


def test_views_in_words():
    assert describe(ViewConfig(), colours=True) == "the whole image"
    assert describe(VIEW, colours=False) == "a crop of 30 to 100% of the image, at random mirrored"
    assert describe(VIEW, colours=True).endswith("at random mirrored or made grey")


class Moving(nn.Module):
    """An encoder whose features turn from rows to columns."""

    def __init__(self):
        super().__init__()
        self.part = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        return (1 - self.part) * x.mean((1, 2)) + self.part * x.mean((1, 3))


def test_neighbours_are_followed_and_shown_with_their_names(tmp_path):
    run = make_run(tmp_path / "first", lines=2)
    (run / "config.json").write_text(json.dumps(to_dict(CONFIG)))
    source, encoder = drawn(), Moving()
    near = Followed(run, CONFIG, source, device=torch.device("cpu"), images=50)
    for step, part in ((1, 0.0), (20, 0.5), (10, 1.0)):  # the training resumed after step 9
        encoder.part.data.fill_(part)
        near.see(encoder, step)
    keep_views(run, CONFIG, source)
    queries = read_followed(run)
    assert [[moment for moment, _ in query.moments] for query in queries] == [["step 1", "step 10"]] * 4
    assert queries[0].moments[0][1] != queries[0].moments[1][1]
    page = read_page(write_report(run))
    check_page(page)
    assert {"Neighbours over the training"} <= set(page.those("h2"))
    assert "What the encoder saw" in page.those("h3") and "There are 3 views of every image" in page.text("p")
    assert sum((image["alt"] or "").startswith("view 2 of <b>drawn.npz[") for image in page.all("img")) == 6
    names = page.those("span")
    shown = [name for name in names if name.startswith("<b>drawn.npz[")]
    assert len(shown) == 6 + 4 + 2 * 4 * 5
    assert sum(name.endswith(".png") for name in names) == 6 * 8


class Turning(MemorySource):
    """Images of which those whose first pixel is white lie on their sides."""

    def read(self, index):
        image = super().read(index)
        return image.mT.contiguous() if image[0, 0, 0] == 255 else image


def test_images_of_several_shapes_are_followed(tmp_path):
    run = make_run(tmp_path / "first", lines=2)
    (run / "config.json").write_text(json.dumps(to_dict(CONFIG)))
    flat = drawn(12)
    flat.images[::2, 0, 0, 0], flat.images[1::2, 0, 0, 0] = 0, 255
    source = Turning("drawn", flat.images, flat.places, labels=None, classes=None)
    near = Followed(run, CONFIG, source, device=torch.device("cpu"), images=12)
    for step, chosen in ((1, [0, 2, 4, 6, 8, 10]), (2, [1, 3, 5, 7, 9, 11]), (3, [0, 1, 2, 3, 4, 5])):
        near._source = source.subset(chosen)
        near.see(Moving(), step)
    with np.load(run / "followed.npz") as arrays:
        assert arrays["neighbours"].shape[:1] + arrays["neighbours"].shape[3:5] == (3, 20, 20)
        assert (arrays["neighbours"][1, ..., :2, :, :] == 255).all()  # lower than the canvas
    assert [moment for moment, _ in read_followed(run)[0].moments] == ["step 1", "step 2", "step 3"]
    for wrong in ({"step": np.array(["a", "b", "c"])}, {"neighbours": np.zeros((3, 4), np.uint8)}, {"step": 3}):
        with np.load(run / "followed.npz") as arrays:
            np.savez(tmp_path / "w.npz", **{**arrays, **wrong})
        (tmp_path / "w.npz").replace(run / "followed.npz")
        assert read_followed(run) == []
        near.see(Moving(), 4)
        assert len(read_followed(run)[0].moments) == 1


def test_pages_of_explore_in_the_run_folder_are_linked(tmp_path):
    run = make_run(tmp_path / "first", lines=2)
    for name, files in (("my <map>", ("explore.json", "index.html")), ("begun", ("explore.json",))):
        (run / name).mkdir()
        for file in files:
            (run / name / file).write_text("{}")
    page = read_page(write_report(run))
    assert [link["href"] for link in page.all("a")] == ["my%20%3Cmap%3E/index.html"]
    assert "The map of images in my <map>" in page.those("a")


def test_files_of_a_different_run_or_damaged_ones_are_not_shown(tmp_path):
    run = make_run(tmp_path / "first", lines=2)
    np.savez(run / "views.npz", where=np.array(["a"]), run=np.array("other"))
    np.savez(run / "followed.npz", run=np.array("other"))
    assert strip(run, CONFIG) is None and read_followed(run) == []
    for where in (np.array("a"), np.array(["a"] * 101)):
        np.savez(run / "views.npz", where=where, run=np.array(identity(run)))
        assert strip(run, CONFIG) is None
    for name in ("views.npz", "followed.npz"):
        (run / name).write_bytes(b"PK\3\4")
    assert strip(run, CONFIG) is None and read_followed(run) == []


def test_a_short_training_is_not_followed(tmp_path):
    seen = {10_000: 50, 9_999: None}
    for images, expected in seen.items():
        near = followed(tmp_path, CONFIG, drawn(), device=torch.device("cpu"), seen=images)
        assert (None if near is None else len(near._source)) == expected


@pytest.mark.slow
def test_a_training_is_followed_and_its_weights_stay_the_same_bits(tmp_path, monkeypatch):
    images = drawn(40).images.numpy()
    settings = {
        "network.encoder": "tiny_resnet", "network.width": 8, "data.image_size": 12, "method.hidden_dim": 8,
        "method.output_dim": 8, "epochs": 3, "batch_size": 10, "data.workers": 0,
    }  # fmt: skip
    weights = []
    for name, least in (("without", 50), ("with", 20)):
        monkeypatch.setattr("matrix_ssl.evaluate.followed._LEAST", least)
        monkeypatch.setattr("matrix_ssl.evaluate.followed._SHARE", 6)
        run = matrix_ssl.pretrain(
            images, recipe="images_small", out=tmp_path / name, settings=settings, report=False, quiet=True,
            device="cpu",
        )  # fmt: skip
        assert (run.folder / "followed.npz").exists() == (name == "with")
        weights.append(run.encoder().state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    with np.load(run.folder / "followed.npz") as arrays:
        assert arrays["step"].tolist() == [1, 3, 5, 8, 10, 12]
        assert arrays["neighbours_where"].shape == (6, 4, 5)
    assert len(read_followed(run.folder)) == 4
