"""Blocks against blocks and checkpoints against checkpoints, beside the functions on the same outputs."""

from dataclasses import replace

import pytest
import torch

from matrix_ssl import matrix
from matrix_ssl.config import DataConfig
from matrix_ssl.data.randomness import permutation
from matrix_ssl.data.sources import open_source
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate import similarity_matrices
from matrix_ssl.evaluate.diagnose import STREAM
from matrix_ssl.evaluate.feature_rows import rows_of
from matrix_ssl.evaluate.similarity_matrices import Network, compare_blocks, compare_checkpoints
from matrix_ssl.matrix import of_features
from matrix_ssl.networks import TinyResNet
from matrix_ssl.report.similarity import heat_maps, matrix_table
from tests.support.matrix_samples import rows

DATA = DataConfig(image_size=8, mean=(0.5,), std=(0.5,), crop_fraction=1.0)
CPU = torch.device("cpu")


def network(width, *, data=DATA):
    torch.manual_seed(width)
    encoder = TinyResNet(channels=1, image_size=8, width=width).eval()
    return Network(f"width {width}", encoder, open_source("digits", split="test", data_root=None), data)


@torch.no_grad()
def outputs(one, count):
    """The features of the images that are compared, in their order, and the outputs of the last block."""
    order = permutation(len(one.source), 0, STREAM)[:count]
    pixels = (one.source.images[torch.from_numpy(order)].float() / 255 - one.data.mean[0]) / one.data.std[0]
    return one.encoder(pixels)


@pytest.mark.parametrize("batch", [32, 256])  # two batches, and a single one
def test_blocks_of_two_networks(batch, monkeypatch):
    monkeypatch.setattr(similarity_matrices, "BATCH", batch)
    a, b = network(8), network(16, data=replace(DATA, mean=(0.3,)))
    done = []
    result = compare_blocks(a, b, images=80, device=CPU, on_progress=lambda *one: done.append(one))
    assert (result["images"], result["sample"], done[-1]) == (80, min(batch, 80), (80, 80))
    between, first, second = result["tables"]
    assert (between["rows"], between["columns"]) == ("width 8", "width 16")
    assert between["row_blocks"] == between["column_blocks"] == ["blocks.0", "blocks.1", "features"]
    x, y = outputs(a, 80), outputs(b, 80)
    expected = matrix.CKAStatistics(2)
    for part in (slice(batch), slice(batch, 80)):
        if len(x[part]):
            expected.add([x[part], y[part]])
    assert between["linear_cka"][-1][-1] == pytest.approx(expected.matrix()[0, 1].item(), rel=1e-4)
    x, y = x[:batch], y[:batch]
    assert between["rsa"][-1][-1] == pytest.approx(matrix.rsa(x, y).item(), rel=1e-3)
    kl = of_features.gram_kl(x.double(), y.double(), ridge=1 / len(x)).item()
    assert between["matrix_kl"][-1][-1] == pytest.approx(kl, rel=1e-4)
    for table in (first, second):
        assert table["linear_cka"][0][0] == pytest.approx(1) and table["matrix_kl"][1][1] == pytest.approx(0, abs=1e-9)
        assert table["linear_cka"][0][2] == pytest.approx(table["linear_cka"][2][0])


def test_blocks_of_one_network_and_outputs_that_are_constant():
    one = network(8)
    torch.nn.init.zeros_(one.encoder.blocks[1].residual[-1].weight)
    result = compare_blocks(one._replace(encoder=torch.nn.Sequential(one.encoder, Zero())), None, images=9, device=CPU)
    (table,) = result["tables"]
    assert table["rows"] == table["columns"] == one.name and table["rsa"][-1] == [None] * len(table["row_blocks"])
    assert table["linear_cka"][-1] == [0.0] * len(table["row_blocks"])
    with pytest.raises(DataError, match="3 of 3 images of 'digits' can be read: four are needed"):
        compare_blocks(one, None, images=3, device=CPU)


class Zero(torch.nn.Module):
    def forward(self, x):
        return 0 * x


def test_checkpoints(monkeypatch):
    monkeypatch.setattr(similarity_matrices, "SAMPLE", 50)
    x = rows(90, 6).float()
    subjects = [rows_of(z, name) for name, z in (("a", x), ("b", x[:, :3]), ("c", -2 * x))]
    result = compare_checkpoints(subjects)
    chosen, _ = torch.from_numpy(permutation(90, 0, STREAM)[:50]).sort()
    sample = x[chosen]
    assert (result["names"], result["sample"]) == (["a", "b", "c"], 50)
    expected = matrix.linear_cka(sample.double(), sample[:, :3].double(), estimator="unbiased").item()
    assert result["linear_cka"][0] == pytest.approx([1, expected, 1])
    kl = of_features.gram_kl(sample.double(), sample[:, :3].double(), ridge=1 / 50).item()
    assert result["matrix_kl"][0] == pytest.approx([0, kl, 0], abs=1e-9)
    assert result["rsa"][0][2] == pytest.approx(1)
    few = compare_checkpoints([rows_of(x[:3], "a"), rows_of(x[:3, :2], "b")])
    assert "linear_cka" not in few and few["sample"] == 3


def test_heat_maps_and_tables():
    table = {"linear_cka": [[1.0, -0.25], [0.5, 1.0], [0.125, 0.0]], "rsa": [[None, 0.5]] * 3}
    names = ["a <b>", "second", "third"]
    figures = heat_maps(table, names, names[:2], name="test", title="one with other")
    assert [figure.title for figure in figures] == ["Linear CKA, one with other", "RSA, one with other"]
    assert figures[0].table[:2] == [["", "a <b>", "second"], ["a <b>", "1", "−0.25"]]
    assert "lowest −0.25, a &lt;b&gt; and second; highest 1" in figures[0].svg and "#0a0b" not in figures[0].svg
    assert figures[1].table[1] == ["a <b>", "–", "0.5"] and "var(--series-0)" in figures[0].svg
    assert matrix_table(table["linear_cka"], names, names[:2], "CKA").row_count == 3
    wide = matrix_table([[0.5] * 40] * 2, names[:2], [str(i) for i in range(40)], "CKA")
    assert [column.header for column in wide.columns][1:] == ["1", "7", "12", "18", "23", "29", "34", "40"]
