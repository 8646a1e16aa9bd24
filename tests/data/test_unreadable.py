"""Sentences on images that cannot be read: short however many there are, and without losing a reason."""

from collections import Counter

from matrix_ssl.data.unreadable import main_reason, skipped

BANDS, EMPTY, TEXT = "a TIFF of 4 bands", "the file is empty", "not an image"


def test_few_images_are_named_one_by_one() -> None:
    found = [("b.png", EMPTY), ("a.tif", BANDS)]
    assert skipped(found) == ["Skipped b.png: the file is empty.", "Skipped a.tif: a TIFF of 4 bands."]
    assert skipped([]) == []


def test_many_images_are_named_by_their_reasons_the_most_frequent_first() -> None:
    found = [("b.png", EMPTY), *((f"{k}.tif", BANDS) for k in range(30_000)), ("c.png", TEXT), ("d.png", EMPTY)]
    assert skipped(found) == [
        "Skipped 30,000 images, such as 0.tif: a TIFF of 4 bands.",
        "Skipped 2 images, such as b.png: the file is empty.",
        "Skipped c.png: not an image.",
    ]
    ((reason, count),) = Counter(why for _, why in found).most_common(1)
    assert main_reason(found) == f"The reason for {count:,} of them, such as 0.tif: {reason}."
    assert main_reason(found[:1]) == "b.png: the file is empty."


def test_a_reason_of_its_own_for_every_image_does_not_flood_the_terminal() -> None:
    lines = skipped([(f"{k}.tif", f"values up to {k}") for k in range(500)])
    assert len(lines) == 11 and lines[-1] == "Skipped for other reasons: 490 more."
