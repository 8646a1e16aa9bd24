"""What several processes check together; ``test_distributed`` runs these functions in real processes over gloo."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from matrix_ssl import distributed, networks
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, MissingExtra, ProcessError

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def rows(*shape: int) -> tuple[Tensor, Tensor]:
    """A float64 batch that is the same everywhere, and this process's part of it."""
    whole = torch.randn(shape[0] * distributed.world_size(), *shape[1:], dtype=torch.float64)
    return whole, whole.chunk(distributed.world_size())[distributed.rank()].clone()


def averaged(gradient: Tensor | None) -> Tensor:
    """The mean over the processes, as DistributedDataParallel takes it."""
    assert gradient is not None
    total = gradient.clone()
    dist.all_reduce(total)
    return total / distributed.world_size()


def gather() -> None:
    whole, part = rows(4, 3)
    weight = torch.randn(3, 2, dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:  # couples all rows, as a covariance does
        return torch.logdet(z.T @ z + torch.eye(2, dtype=torch.float64)) + z.pow(3).mean()

    single = weight.clone().requires_grad_()
    expected = loss(torch.tanh(whole @ single))
    expected.backward()
    ours = weight.clone().requires_grad_()
    gathered = distributed.gather(torch.tanh(part @ ours))
    torch.testing.assert_close(gathered.detach(), torch.tanh(whole @ weight), **TOLERANCE)
    found = loss(gathered)
    found.backward()
    torch.testing.assert_close(found, expected, **TOLERANCE)
    torch.testing.assert_close(averaged(ours.grad), single.grad, **TOLERANCE)


def all_reduce_sum() -> None:
    whole, part = rows(4, 3)
    weight = torch.randn(3, 2, dtype=torch.float64)

    def outputs(x: Tensor, w: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        z = torch.tanh(x @ w)
        return z * total(z.square().sum(0)).sqrt() + total(z.sum(0)).sin()

    single = weight.clone().requires_grad_()
    expected = outputs(whole, single, lambda s: s).pow(3).sum()
    expected.backward()
    ours = weight.clone().requires_grad_()
    found = distributed.gather(outputs(part, ours, distributed.all_reduce_sum)).pow(3).sum()
    found.backward()
    torch.testing.assert_close(found, expected, **TOLERANCE)
    torch.testing.assert_close(averaged(ours.grad), single.grad, **TOLERANCE)


def batch_norm() -> None:
    for shape in ((5, 4), (3, 4, 2, 2)):
        for settings in ({}, {"momentum": None}, {"momentum": 0.0}, {"affine": False}, {"eps": 0.1}):
            kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
            torch.manual_seed(len(shape))
            single = kind(4, **settings).double()
            if single.affine:
                nn.init.normal_(single.weight)
                nn.init.normal_(single.bias)
            ours = networks.SynchronisedBatchNorm.like(kind(4, **settings).double())
            ours.load_state_dict(single.state_dict())
            for _ in range(3):
                compare_batch_norms(single, ours, shape)
            single.eval(), ours.eval()
            whole, part = rows(*shape)
            expected = single(whole).chunk(distributed.world_size())[distributed.rank()]
            torch.testing.assert_close(ours(part), expected, **TOLERANCE)


def compare_batch_norms(single: nn.Module, ours: nn.Module, shape: tuple[int, ...]) -> None:
    whole, part = rows(*shape)
    whole, part = (10 * whole + 1000).requires_grad_(), (10 * part + 1000).requires_grad_()  # far from zero mean
    coefficients = torch.randn(whole.shape, dtype=torch.float64)
    for module in (single, ours):
        module.zero_grad()
    expected = single(whole)
    (expected * coefficients).sum().backward()
    found = distributed.gather(ours(part))
    (found * coefficients).sum().backward()
    tolerance = {"rtol": 1e-12, "atol": 1e-10}  # of values around 1000
    torch.testing.assert_close(found, expected, **tolerance)
    size, rank = distributed.world_size(), distributed.rank()
    torch.testing.assert_close(part.grad / size, whole.grad.chunk(size)[rank], **tolerance)
    for name, parameter in single.named_parameters():
        torch.testing.assert_close(averaged(ours.get_parameter(name).grad), parameter.grad, **tolerance)
    for name, buffer in single.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)


def whole_network() -> None:
    """Conversion leaves names, values and the mode; a deep network then sees the whole batch."""
    torch.manual_seed(1)
    single, _ = networks.build_encoder("tiny_resnet", channels=1, image_size=8, width=8)
    torch.manual_seed(1)
    ours, _ = networks.build_encoder("tiny_resnet", channels=1, image_size=8, width=8)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    ours = networks.synchronise_batch_norm(ours, "cpu")
    assert not any(type(m) is nn.BatchNorm2d for m in ours.modules())
    assert ours.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    single, ours = single.double(), ours.double()
    whole, part = rows(4, 1, 8, 8)
    expected, found = single(whole), distributed.gather(ours(part))
    torch.testing.assert_close(found, expected, **TOLERANCE)
    expected.pow(2).sum().backward()
    found.pow(2).sum().backward()
    for name, parameter in single.named_parameters():
        torch.testing.assert_close(averaged(ours.get_parameter(name).grad), parameter.grad, rtol=1e-9, atol=1e-9)


def agreement() -> None:
    size, rank = distributed.world_size(), distributed.rank()
    assert distributed.broadcast_object({"of": rank}) == {"of": 0}
    assert distributed.maximum(torch.tensor([rank, -rank])).tolist() == [size - 1, 0]
    with distributed.together():
        pass
    for guilty in range(size):
        for error in (ConfigError("wrong"), MissingExtra("timm", "timm"), DataError("gone")):
            try:
                with distributed.together():
                    if rank == guilty:
                        raise error
            except MatrixSSLError as caught:
                assert (str(caught), caught.exit_code) == (str(error), error.exit_code)
                continue
            raise AssertionError("nothing was raised")
    expected, text = (DataError, "gone") if rank == 0 else (ProcessError, f"process {rank}: gone")
    try:
        with distributed.alone():
            raise DataError("gone")
    except MatrixSSLError as caught:
        assert (type(caught), str(caught)) == (expected, text)
