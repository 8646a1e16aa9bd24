"""A batch in parts, and blocks that are computed again: the plain step, in less memory."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl import networks
from matrix_ssl.methods import complete_options, find_method
from tests.support.conformance import SMALL


class Block(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.layers(x))


def transformer(*, width: int = 12, dropout: float = 0.0) -> nn.Module:
    """Rows of its outputs depend on nothing but their image."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 4, 4), nn.Flatten(), nn.Linear(4 * width, width),
        nn.Sequential(*(Block(width, dropout) for _ in range(3))),
    )  # fmt: skip


def step(name: str, encoder: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss, outputs and gradients of one step of a method."""
    kind = find_method(name)
    torch.manual_seed(1)
    options = {key: value for key, value in SMALL.items() if key in complete_options(kind, {})}
    method = kind(encoder, 12, **options).to(dtype)
    for network in filter(None, (method.teacher_encoder(),)):
        assert network.training
    views = [torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(v), dtype=dtype) for v in (2, 3)]
    output = method.train()(*views)
    output.loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": output.loss.detach(), "features": output.features, "student": output.student, **gradients}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["matrix_ssl", "matrix_entropy", "simclr", "vicreg", "dino"])
@pytest.mark.parametrize("parts", [3, *(pytest.param(parts, marks=pytest.mark.slow) for parts in (2, 20))])
def test_a_step_in_parts_is_the_plain_one(name: str, parts: int, dtype: torch.dtype, tolerance: float) -> None:
    plain, in_parts = transformer(), transformer()
    networks.compute_in_parts(in_parts, parts)
    expected, found = step(name, plain, dtype), step(name, in_parts, dtype)
    assert found.keys() == expected.keys() and any(key.startswith("encoder.") for key in found)
    largest = max(value.abs().max() for key, value in expected.items() if key.startswith("encoder."))
    for key, value in expected.items():  # some gradients are zero but for rounding, such as before BatchNorm
        scale = max(value.abs().max(), largest).item()
        # the loss multiplies the rounding of the outputs, most in the gradient of the matrix logarithm in float32
        worst = 3 if key not in ("loss", "features", "student") and dtype == torch.float32 else 1
        torch.testing.assert_close(found[key], value, rtol=0, atol=worst * tolerance * scale)


class Sum(nn.Module):
    """Two weights whose gradients are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(4, 6, dtype=torch.float64)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.a + self.b).tanh()


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_gradients_that_share_memory(parts: int) -> None:
    """Of a sum, and of the class token of a vision transformer, which is a part of that of its positions."""
    timm = pytest.importorskip("timm")
    settings = {"img_size": 16, "patch_size": 8, "num_classes": 0, "embed_dim": 24, "depth": 1, "num_heads": 2}
    for network, images in (
        (Sum(), torch.randn(7, 6, dtype=torch.float64)),
        (timm.models.VisionTransformer(**settings).double(), torch.randn(7, 3, 16, 16, dtype=torch.float64)),
    ):
        in_parts = copy.deepcopy(network)
        networks.compute_in_parts(in_parts, parts)
        for each in (network, in_parts):
            each.train()(images).square().sum().backward()
        for (name, plain), ours in zip(network.named_parameters(), in_parts.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_a_copy_computes_with_its_own_weights() -> None:
    network = Sum()
    networks.compute_in_parts(network, 2)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.a.zero_(), other.b.zero_()
    assert other(torch.randn(4, 6, dtype=torch.float64)).abs().max() == 0
    with pytest.raises(ValueError, match="gives no gradient by its input: detach it"):
        network(torch.randn(4, 6, dtype=torch.float64, requires_grad=True))


def test_what_layers_draw_is_drawn_again_alike() -> None:
    network = transformer(dropout=0.5).double()
    reference = copy.deepcopy(network)
    networks.compute_in_parts(network, 4)
    x = torch.randn(12, 1, 8, 8, dtype=torch.float64)
    torch.manual_seed(5)
    network(x).square().sum().backward()
    after = torch.rand(3)
    torch.manual_seed(5)
    sum(reference(chunk).square().sum() for chunk in x.chunk(4)).backward()
    assert torch.equal(after, torch.rand(3))
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_under_autocast_the_second_forward_is_the_first() -> None:
    network = transformer()
    networks.compute_in_parts(network, 2)
    dtypes: list[torch.dtype] = []
    network[2].register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(torch.randn(4, 1, 8, 8)).float().square().sum()
    loss.backward()
    assert dtypes == [torch.bfloat16] * 4


def kept(network: nn.Module, x: Tensor) -> int:
    """Numbers that a forward keeps for the gradient, without parameters and images."""
    known = {p.data_ptr() for p in [*network.parameters(), x]}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() if tensor.untyped_storage().data_ptr() not in known else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    return sum(sizes)


def test_memory() -> None:
    x = torch.randn(16, 1, 8, 8)
    plain, in_parts, again = transformer(), transformer(), transformer()
    networks.compute_in_parts(in_parts, 4)
    assert networks.recompute_blocks(again) == 3
    assert kept(in_parts, x) == 0 < kept(again, x) < kept(plain, x) / 2


def test_blocks_that_are_computed_again_change_no_bit() -> None:
    plain, again = transformer(dropout=0.3), transformer(dropout=0.3)
    assert networks.recompute_blocks(again) == 3
    x = torch.randn(6, 1, 8, 8)
    for network in (plain, again):
        torch.manual_seed(3)
        network(x).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    assert plain.state_dict().keys() == again.state_dict().keys()


@pytest.mark.parametrize(("name", "settings"), [("vit_b_16", {}), ("timm/test_vit", {"patch_size": 8})])
def test_blocks_of_transformers(name: str, settings: dict[str, Any]) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    encoder, _ = networks.build_encoder(name, channels=3, image_size=16, **settings)
    assert networks.recompute_blocks(encoder) >= 2 and not networks.mixes_rows(encoder)


def test_networks_whose_rows_depend_on_each_other() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert networks.mixes_rows(network) and not networks.mixes_rows(network.eval())
    assert networks.recompute_blocks(network) == 0


@pytest.mark.parametrize("name", ["tiny_resnet", "resnet18"])
def test_statistics_of_a_batch_whose_blocks_are_computed_again(name: str) -> None:
    plain, _ = networks.build_encoder(name, channels=1, image_size=16, width=4)
    again = copy.deepcopy(plain)
    assert networks.recompute_blocks(again) == (3 if name == "tiny_resnet" else 8)
    x = torch.randn(4, 1, 16, 16)
    for network in (plain, again):
        for _ in range(2):
            network(x).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    assert networks.mixes_rows(again) and all(
        torch.equal(value, again.state_dict()[name]) for name, value in plain.state_dict().items()
    )
    assert kept(again, x) < 0.6 * kept(plain, x)
