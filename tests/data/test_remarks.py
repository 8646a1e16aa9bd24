"""What is said about files that hold more than is used: stacks and animations of which only the first page is read."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matrix_ssl.config.reading import Reading
from matrix_ssl.data import Source, open_source


def write(path: Path, pages: int, *, seed: int = 0) -> None:
    """An image of several pages, by Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)) for _ in range(pages)]
    images[0].save(path, save_all=pages > 1, **({"append_images": images[1:]} if pages > 1 else {}))


def opened(*data: Path, reading: Reading = Reading()) -> Source:  # noqa: B008, it is immutable
    return open_source(tuple(map(str, data)), split="train", data_root=None, reading=reading)


def about_pages(source: Source) -> list[str]:
    return [remark for remark in source.remarks if "pages" in remark]


@pytest.mark.parametrize("ending", ["tif", "gif", "webp", "png"])
def test_stacks_of_which_one_page_is_used_are_named_with_the_remedy(tmp_path: Path, ending: str) -> None:
    for number in range(4):
        write(tmp_path / "x" / f"a{number}.{ending}", 1 + 2 * (number % 2), seed=number)
    (remark,) = about_pages(opened(tmp_path / "x"))
    assert remark.startswith(
        f"2 of the 4 files have several pages, such as 'a1.{ending}', and only the first page of each is used. "
    )
    assert "--set data.pages=all" in remark and "--set data.pages=channels" in remark


def test_nothing_is_said_of_single_pages_or_if_all_are_used(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "one" / f"a{number}.tif", 1, seed=number)
        write(tmp_path / "many" / f"a{number}.tif", 2, seed=number)
    (tmp_path / "one" / "empty.tif").write_bytes(b"")
    assert about_pages(opened(tmp_path / "one")) == []
    everything = opened(tmp_path / "many", reading=Reading(pages="all"))
    assert len(everything) == 6 and about_pages(everything) == []
    assert about_pages(opened(tmp_path / "many", reading=Reading(channels=2, pages="channels"))) == []


def test_stacks_in_archives_and_among_several_datasets_are_named_once(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "one" / f"a{number}.png", 1, seed=number)
        write(tmp_path / "many" / f"a{number}.tif", 2, seed=number)
    with tarfile.open(tmp_path / "many.tar", "w") as archive:
        archive.add(tmp_path / "many", arcname=".")
    for other in (tmp_path / "many", tmp_path / "many.tar"):
        (remark,) = about_pages(opened(tmp_path / "one", other))
        assert remark.startswith("3 of the 6 files have")


def test_a_large_folder_is_sampled(tmp_path: Path) -> None:
    for number in range(70):
        write(tmp_path / f"a{number:02d}.gif", 2, seed=number)
    assert about_pages(opened(tmp_path))[0].startswith("32 of 32 files looked at have several pages")
