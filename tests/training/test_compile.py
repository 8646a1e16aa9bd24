"""What a step computes compiles without a graph break: networks, views (losses: beside them) and a whole training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from matrix_ssl import networks
from matrix_ssl.config import asymmetric_views, override
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import open_source
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs.display import Display
from matrix_ssl.training import setup
from matrix_ssl.training.pretraining import compilation
from tests.data.test_device_views import images, on_device
from tests.support.runs import TINY, timeless

NETWORKS = {
    "tiny_resnet": {"width": 8}, "resnet18": {}, "timm/test_vit": {"patch_size": 4},
    "resnet50": {}, "mobilenet_v3_small": {}, "vit_b_16": {},
}  # fmt: skip
SLOW = ("tiny_resnet", "resnet18", "timm/test_vit", "resnet50", "mobilenet_v3_small", "vit_b_16")


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETWORKS]
)
def test_an_encoder_with_its_projector(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    encoder, width = networks.build_encoder(name, channels=3, image_size=16, **NETWORKS[name])
    network = nn.Sequential(encoder, networks.projector(width, 16, 8))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    found = []
    for function in (network, compiled):
        network.zero_grad()
        torch.manual_seed(1)  # of dropout
        function(x).square().sum().backward()
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_the_views_of_a_gpu() -> None:
    views, pixels, samples = on_device(asymmetric_views(), channels=3), images(6), np.arange(6)
    expected = views.of_images(pixels, samples, seed=3, epoch=0)
    for part in ("_crop", "_finish"):
        setattr(views, part, torch.compile(getattr(views, part), backend="aot_eager", fullgraph=True))
    found = views.of_images(pixels, samples, seed=3, epoch=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # PyTorch's compiler about its own tensors
def test_the_setting_trains_the_same_to_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the backend that generates no code, as the other one needs a compiler and its time."""
    source = open_source("digits", split="train", data_root=None)
    compiled: list[Tensor | nn.Module] = []
    real = nn.Module.compile

    def compile(module: nn.Module, *, backend: str) -> None:
        compiled.append(module)
        real(module, backend="aot_eager" if backend == "inductor" else backend)

    monkeypatch.setattr(nn.Module, "compile", compile)
    lines = []
    for setting in ("false", "true"):
        chosen = [*TINY, "data.subset=128", "epochs=1", "log_every=1", "precision=float32", f"compile={setting}"]
        config = setup.complete(override(find_recipe("demo"), chosen))
        folder = tmp_path / setting
        folder.mkdir()
        training = setup.prepare(config, source=source, device=torch.device("cpu"), display=Display(quiet=True))
        training.train(folder)
        lines.append(timeless(folder))
        assert len(compiled) == (0 if setting == "false" else 4)
    assert [line["loss"] for line in lines[1]] == pytest.approx([line["loss"] for line in lines[0]], rel=1e-4)
    names = {name for name, _ in training.method.named_parameters()}
    assert not any("_orig_mod" in name for name in names)


def test_a_compiler_that_fails_is_one_sentence() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found:\n(None, 'g++')")

    sentence = r"^compile=true: .* \(No working C\+\+ compiler found\)\. .*compile=false\.$"
    with pytest.raises(ConfigError, match=sentence), compilation():
        torch.compile(lambda x: x + 1, backend=broken)(torch.ones(1))
    with pytest.raises(ZeroDivisionError), compilation():
        1 / 0  # noqa: B018
