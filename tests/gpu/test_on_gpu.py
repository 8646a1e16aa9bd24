"""What only a GPU can show: CUDA graphs of the losses, Triton's kernels, whole trainings, and the views of the CPU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from matrix_ssl import config
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import open_source
from matrix_ssl.data.views import augment
from matrix_ssl.data.views.device_views import DeviceViews
from matrix_ssl.encoder import load_encoder
from matrix_ssl.losses import matrix_entropy_loss, matrix_ssl_loss, mec_loss
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_lines, write_json
from matrix_ssl.runs.folder import CONFIG, METRICS
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training import setup
from tests.data.test_augment import photographs
from tests.support.stops import stop_once

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")

GPU = torch.device("cuda")
SMALL = ["data.subset=256", "batch_size=64", "network.width=8", "method.hidden_dim=32", "method.output_dim=16",
         "optimizer.warmup_epochs=0", "epochs=2", "precision=float32"]  # fmt: skip
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "matrix_ssl": lambda z1, z2, p1, p2: matrix_ssl_loss(z1, z2, p1, p2),
    "matrix_ssl, quadrature": lambda z1, z2, p1, p2: matrix_ssl_loss(z1, z2, p1, p2, algorithm="quadrature"),
    "matrix_ssl, taylor": lambda z1, z2, p1, p2: matrix_ssl_loss(z1, z2, p1, p2, ridge=1.0, logarithm="taylor"),
    "mec": lambda z1, z2, p1, p2: mec_loss(z1, z2, p1, p2),
    "matrix_entropy": lambda z1, z2, p1, p2: matrix_entropy_loss(z1, z2),
    "matrix_entropy, order 2": lambda z1, z2, p1, p2: matrix_entropy_loss(z1, z2, order=2.0),
    "matrix_entropy, kernel": lambda z1, z2, p1, p2: matrix_entropy_loss(z1, z2, width=0.5),
}


def rows(seed: int, n: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Outputs of two views by student and teacher; those of the second view are near those of the first."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, d, generator=generator, dtype=dtype)
    return [first + 0.3 * torch.randn(n, d, generator=generator, dtype=dtype) for _ in range(4)]


def value_and_gradients(name: str, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    loss = LOSSES[name](*leaves)
    return (loss.detach(), *torch.autograd.grad(loss, leaves[:2]))


@pytest.mark.parametrize("shape", [(64, 32), (32, 64)], ids=["n > d", "n < d"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_cpu(name: str, shape: tuple[int, int]) -> None:
    inputs = rows(0, *shape, dtype=torch.float64)
    for mine, theirs in zip(
        value_and_gradients(name, [x.to(GPU) for x in inputs]), value_and_gradients(name, inputs), strict=True
    ):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_cuda_graph_holds_value_and_gradient_of_a_loss(name: str) -> None:
    """A graph can be captured only where nothing is read back and nothing waits."""
    inputs = [x.to(GPU) for x in rows(0, 64, 32)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries get their memory before the capture
        for _ in range(3):
            value_and_gradients(name, inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradients(name, inputs)
    for seed in (1, 2):
        for held, fresh in zip(inputs, rows(seed, 64, 32), strict=True):
            held.copy_(fresh)
        graph.replay()
        for mine, theirs in zip(captured, value_and_gradients(name, inputs), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_views_are_those_of_the_cpu() -> None:
    pixels = (photographs(48, channels=3, side=40) * 255).to(torch.uint8)
    views, samples = augment.each_view(config.asymmetric_views(), 32), np.arange(48)
    made = []
    for device in (GPU, torch.device("cpu")):
        maker = DeviceViews(
            views, mean=config.IMAGENET_MEAN, std=config.IMAGENET_STD, device=device, dtype=torch.float32
        )
        made.append(maker.of_images(pixels.to(device), samples, seed=3, epoch=1))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=1e-4)


def trained(folder: Path, device: torch.device, *settings: str, method: str = "matrix_ssl") -> list[dict[str, float]]:
    """Trains on a few digits, on from a checkpoint that the folder has; the lines of metrics."""
    base = setup.use_method(find_recipe("demo"), method, papers=False)
    run = setup.complete(config.override(base, [*SMALL, *settings]))
    source = open_source("digits", split="train", data_root=None)
    folder.mkdir(exist_ok=True)
    write_json(folder / CONFIG, config.to_dict(run))
    setup.prepare(run, source=source, device=device, display=Display(quiet=True)).train(folder)
    lines: list[dict[str, float]] = read_lines(folder / METRICS)
    return lines


@pytest.mark.parametrize("method", ["matrix_ssl", "matrix_entropy", "simclr"])
def test_a_training_follows_that_of_the_cpu(method: str, tmp_path: Path) -> None:
    losses = []
    for name, device in (("cpu", torch.device("cpu")), ("gpu", GPU)):
        lines = trained(tmp_path / name, device, "log_every=1", "epochs=1", method=method)
        losses.append([line["loss"] for line in lines])
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)


def test_two_deterministic_trainings_have_the_same_bits(tmp_path: Path) -> None:
    try:
        for name in ("first", "second"):
            trained(tmp_path / name, GPU, "deterministic=true")
    finally:
        torch.use_deterministic_algorithms(False)
    first, second = (load_encoder(tmp_path / name).state_dict() for name in ("first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_a_stopped_training_goes_on_with_the_same_bits(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("deterministic=true", f"optimizer.name={optimizer}", "optimizer.learning_rate=0.01")
    try:
        trained(tmp_path / "whole", GPU, *settings)
        stop_once(monkeypatch, before=5)
        with pytest.raises(Interrupted):
            trained(tmp_path / "parts", GPU, *settings)
        trained(tmp_path / "parts", GPU, *settings)
    finally:
        torch.use_deterministic_algorithms(False)
    whole, parts = (load_encoder(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.filterwarnings("ignore:.*script_method. is deprecated:DeprecationWarning")  # PyTorch's own, in 2.11
def test_bfloat16_and_compiled_networks_learn(tmp_path: Path) -> None:
    """Where ``auto`` is bfloat16; the loss of a compiled training is near that of an eager one."""
    assert devices.choose_precision("auto", GPU) == "bfloat16"
    eager = trained(tmp_path / "eager", GPU, "precision=auto")
    compiled = trained(tmp_path / "compiled", GPU, "precision=auto", "compile=true")
    torch.compiler.reset()
    assert compiled[-1]["loss"] == pytest.approx(eager[-1]["loss"], rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compute_what_pytorch_does(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from matrix_ssl.llm import Objective, matrix_cross_entropy_terms
    from matrix_ssl.llm.loss import passes

    generator = torch.Generator().manual_seed(0)
    vocabulary, d = 9001, 64  # more than two blocks, of which the last is not whole
    head = (torch.randn(vocabulary, d, generator=generator) + 0.3).to(GPU, dtype)
    hidden = (0.3 * torch.randn(2, 40, d, generator=generator)).to(GPU, dtype)
    labels = torch.randint(vocabulary, (2, 40), generator=generator).to(GPU)
    labels[0, 2] = -100
    for objective in (Objective(chunk=32), Objective(weight=0.3, ridge=0.1), Objective(weight=0.0)):
        found = []
        for kernels in (True, False):
            monkeypatch.setattr(passes, "uses_kernels", lambda z, objective, kernels=kernels: kernels)
            leaves = [x.clone().requires_grad_() for x in (hidden, head)]
            terms = matrix_cross_entropy_terms(*leaves, labels, objective=objective)
            found.append((*(x.detach() for x in terms), *torch.autograd.grad(terms.loss, leaves)))
        for mine, theirs in zip(*found, strict=True):
            if mine.is_floating_point():
                scale = float(theirs.float().abs().max())
                torch.testing.assert_close(
                    mine, theirs, rtol=1e-3, atol=scale * (1e-2 if mine.dtype != torch.float32 else 1e-4)
                )
