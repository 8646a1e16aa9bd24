"""Operations counted by PyTorch beside the textbook's formula, and the table of numbers beside published ones."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness import RESULTS
from benchmarks.pages import scale
from matrix_ssl.networks.encoders import build_encoder
from matrix_ssl.runs.files import read_json


@pytest.mark.parametrize(("name", "width"), [("tiny_resnet", 16), ("resnet18", 32)])
def test_operations_are_those_of_the_formula(name: str, width: int) -> None:
    encoder, _ = build_encoder(name, channels=3, image_size=32, width=width, stem="small")
    forward: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        forward.append(2 * layer.weight.numel() * output.shape[2] * output.shape[3])

    for layer in encoder.modules():
        assert not isinstance(layer, nn.Linear)
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    encoder(torch.zeros(2, 3, 32, 32))
    # backward has two products as large as that of forward, but none towards the image
    assert scale.flop_per_view(name, width=width) == 3 * sum(forward) - forward[0]


def test_rows_of_runs_and_of_others() -> None:
    runs = list(scale.on_a_gpu(read_json(RESULTS / "gpu_short.json")))
    assert [(row["method"], row["epochs"]) for row in runs] == [("simclr", 40)]
    assert runs[0]["flop"] == scale.flop_per_view("resnet18") * 2 * 40 * 195 * 256
    others = list(scale.published())
    assert others[1]["flop"] / runs[0]["flop"] == pytest.approx(5, rel=0.01)  # 200 epochs beside 40
    lines = scale.section([*runs, *others]).splitlines()
    assert lines[2] == "| `gpu_short`, NVIDIA H200 | simclr | resnet18 | 40 | 1.3e16 | 76.0 | 73.7 |"
    assert lines[4] == "| lightly's benchmark, batch 512 | simclr | resnet18 | 200 | 6.7e16 | – | 84.8 |"


def test_row_of_a_comparison() -> None:
    results = read_json(RESULTS / "compare_cifar10_16px_wide.json")
    row = next(row for row in scale.compared(results) if row["method"] == "matrix_entropy")
    assert (row["seeds"], row["epochs"]) == (5, 24)
    assert scale.in_per_cent(row, "linear") == "58.2 ± 0.4"
    assert row["flop"] == scale.flop_per_view("tiny_resnet", width=32, side=16) * 2 * 936 * 256
