"""What a pre-training without a recipe chooses."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import torch

from matrix_ssl.config import to_dict
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import open_source
from matrix_ssl.errors import DataError
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import CHECKPOINTS, CONFIG
from matrix_ssl.training import fitting, setup
from matrix_ssl.training.fitting import Fit, Folder, Machine, fit
from tests.support.runs import make_images

PAGE = Path(__file__).parents[2] / "docs" / "images.md"
ROWS = [
    line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if re.match(r"\| [\d,]+ \| \d+ \|", line)
]


def choice(images: int, *, side: int = 500, gpu: bool = False, memory: float = 16, processes: int = 1,
           has_weights: bool = False) -> Fit:  # fmt: skip
    return fit(Folder(images, side), Machine(gpu, memory, processes), has_weights=has_weights)


@pytest.mark.parametrize("row", ROWS, ids=["-".join(row[:4]).replace(" ", "") for row in ROWS])
def test_the_table_of_the_docs(row: list[str]) -> None:
    images, side, machine, weights, recipe, network, size, batch, epochs = row
    processes = int(machine[0]) if machine[0].isdigit() else 1
    memory = float(re.search(r"(\d+) GiB", machine)[1]) if "GiB" in machine else 16.0  # type: ignore[index]
    chosen = choice(
        int(images.replace(",", "")), side=int(side), gpu="GPU" in machine, memory=memory, processes=processes,
        has_weights=weights == "yes",
    )  # fmt: skip
    key = "start.reference" if "/" in network else "network.encoder"
    assert chosen.recipe == recipe.strip("`")
    assert chosen.values == {
        key: network.strip("`"), "data.image_size": int(size), "batch_size": int(batch), "epochs": int(epochs)
    }  # fmt: skip


def test_the_table_is_read() -> None:
    assert len(ROWS) > 10


@pytest.mark.parametrize("images", [2, 3, 15, 16, 17, 63, 64, 1000, 10**6])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_a_batch_is_never_larger_than_the_folder(images: int, processes: int) -> None:
    if processes > images:
        pytest.skip("every process needs an image")
    batch = choice(images, gpu=True, processes=processes).values["batch_size"]
    assert 2 <= batch <= max(images, 2) and batch % processes == 0


def test_few_images_are_remarked() -> None:
    assert "200 images teach an encoder little" in choice(200).remark
    assert not choice(200, has_weights=True).remark and not choice(5000).remark


class TestFitted:
    CPU = torch.device("cpu")

    def fitted(self, folder: Path, run: Path | None = None, chosen: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
        source = open_source(str(folder), split="train", data_root=None)
        return fitting.fitted(find_recipe("images_small"), source, self.CPU, chosen=chosen, run=run, download=False)

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    def test_a_folder_that_is_smaller_than_a_batch_trains(self, tmp_path: Path) -> None:
        make_images(tmp_path / "few", 5)
        config, names, remark = self.fitted(tmp_path / "few", chosen=("epochs",))
        assert config.batch_size == 5 and config.data.image_size == 32 and "epochs" not in names and remark
        source = open_source(str(tmp_path / "few"), split="train", data_root=None)
        training = setup.prepare(
            setup.complete(setup.identify_data(config, source)), source=source, device=self.CPU,
            display=Display(quiet=True),
        )  # fmt: skip
        assert training.plan.steps_per_epoch == 1

    def test_what_the_user_chose_stays(self, tmp_path: Path) -> None:
        make_images(tmp_path / "few", 5)
        chosen = ("network.encoder", "data.image_size", "batch_size", "epochs")
        config, names, _ = self.fitted(tmp_path / "few", chosen=chosen)
        assert config == find_recipe("images_small") and not names

    def test_a_run_that_exists_keeps_its_choice(self, tmp_path: Path) -> None:
        make_images(tmp_path / "few", 5)
        config, _, _ = self.fitted(tmp_path / "few")
        (tmp_path / "run").mkdir()
        write_json(tmp_path / "run" / CONFIG, to_dict(config))
        assert fitting.base_recipe("cpu", tmp_path / "run") == fitting.base_recipe("cpu", None)  # it has not begun
        (tmp_path / "run" / CHECKPOINTS).mkdir()
        make_images(tmp_path / "few", 90)
        again, _, _ = self.fitted(tmp_path / "few", run=tmp_path / "run")
        assert again == config and self.fitted(tmp_path / "few")[0] != config
        assert fitting.base_recipe("cpu", tmp_path / "run") == "images_small"

    def test_a_single_image_is_refused(self, tmp_path: Path) -> None:
        make_images(tmp_path / "one", 1)
        with pytest.raises(DataError, match="'one' is a single image"):
            self.fitted(tmp_path / "one")


def test_the_expected_time_is_of_the_whole_run_and_leaves_the_random_numbers() -> None:
    config = dataclasses.replace(
        find_recipe("images_small"), batch_size=2, data=dataclasses.replace(find_recipe("images_small").data, images=2)
    )
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    seconds = fitting.expected_seconds(setup.complete(config), torch.device("cpu"))
    assert 0 < seconds < float("inf") and torch.equal(before, torch.random.get_rng_state())
    assert "about 25 min" in fitting.describe(config, ["epochs"], 1500)
    assert "epochs=15" in fitting.describe(config, ["epochs"], 1500)


@pytest.mark.parametrize(("method", "passes"), [("matrix_entropy", 1.0), ("matrix_ssl", 4 / 3)])
def test_the_expected_time_is_that_of_whole_batches(
    monkeypatch: pytest.MonkeyPatch, method: str, passes: float
) -> None:
    """By a clock that counts its calls, so that a batch always takes one second; a teacher costs a third more."""
    monkeypatch.setattr("time.perf_counter", itertools.count().__next__)
    recipe = setup.use_method(find_recipe("images_small"), method)
    views = sum(view.count for view in recipe.views)
    for images, subset, epochs in ((2, 0, 1), (3, 0, 1), (4, 0, 1), (5, 0, 3), (600, 5, 3), (5, 600, 3)):
        data = dataclasses.replace(recipe.data, images=images, subset=subset)
        config = dataclasses.replace(recipe, batch_size=2, epochs=epochs, data=data)
        seconds = fitting.expected_seconds(setup.complete(config), torch.device("cpu"))
        batches = min(images, subset or images) // 2
        assert seconds == pytest.approx(batches * epochs * views * 1.25 * passes)
