"""The stopwatch of the first day: the images that it writes, and the commands that it runs."""

import numpy as np
from PIL import Image

from benchmarks.experiments import first_day
from matrix_ssl.data import open_source


def test_as_many_files_of_every_class_are_written(tmp_path):
    source = open_source("digits", split="train", data_root=None)
    assert first_day.write_photos(tmp_path, source, 3) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(digit) for digit in range(10)]
    with Image.open(tmp_path / "7" / "002.jpg") as image:
        assert image.format == "JPEG" and image.size == (8, 8)
        pixels = np.asarray(image.convert("L"), dtype=np.float64)
    labels, _ = source.labelled()
    sevens = [source.read(int(row))[0].numpy() for row in np.flatnonzero(labels == 7)]
    assert min(np.abs(pixels - seven).mean() for seven in sevens) < 4
    first_day.write_photos(tmp_path / "again", source, 3)
    assert (tmp_path / "again" / "0" / "001.jpg").read_bytes() == (tmp_path / "0" / "001.jpg").read_bytes()


def test_the_commands_are_those_that_a_new_user_types():
    steps = first_day.commands(["epochs=2"])
    assert [words[0] for words in steps.values()] == list(steps) == ["pretrain", "evaluate", "explore"]
    assert steps["pretrain"][-2:] == ["--set", "epochs=2"]


def test_a_command_is_timed_with_its_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/echo")
    measured = first_day.timed(["evaluate", "run"], tmp_path)
    assert measured["command"] == "matrix-ssl evaluate run" and measured["seconds"] > 0 <= measured["cpu_seconds"]
