"""What several processes check together; ``test_distributed`` runs these functions in real processes over gloo."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from matrix_ssl import distributed, losses, networks
from matrix_ssl.distributed import batch_norm as run_batch_norm
from matrix_ssl.distributed import losses as parallel
from matrix_ssl.distributed.statistics import merge_over_processes
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, MissingExtra, ProcessError
from matrix_ssl.matrix import Moments, RankStatistics, covariance, rank_me, self_cluster
from matrix_ssl.methods import complete_options, find_method, list_methods
from matrix_ssl.networks import build_encoder

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


def uneven(*columns: int) -> tuple[Tensor, Tensor, list[int]]:
    """A float64 batch that is the same everywhere, this process's part of it, and the sizes of all parts."""
    sizes = [3 + 2 * i for i in range(distributed.world_size())]
    whole = torch.randn(sum(sizes), *columns, dtype=torch.float64)
    return whole, whole.split(sizes)[distributed.rank()].clone(), sizes


def streams() -> None:
    """One pass over features that are spread over processes, of which the last has none."""
    whole, _ = rows(12, 5)
    parts = [*whole.chunk(distributed.world_size() - 1), whole[:0]]
    for state in (Moments(5), RankStatistics(5, groups=4)):
        state.add(parts[distributed.rank()])
        together = merge_over_processes(state)
        assert together.count == len(whole) and state.count == len(parts[distributed.rank()])
        sizes = torch.tensor([float(together.packed().sum())], dtype=torch.float64)
        torch.testing.assert_close(distributed.maximum(sizes), sizes, rtol=0, atol=0)  # the same bits everywhere
        moments = together.moments() if isinstance(together, RankStatistics) else together
        torch.testing.assert_close(moments.covariance(), covariance(whole), **TOLERANCE)


def metric_objects() -> None:
    """torchmetrics' objects merge the processes when they compute."""
    from matrix_ssl.matrix import metrics  # torchmetrics is slow to import

    whole, part = rows(6, 4)
    for kind, function in ((metrics.RankMe, rank_me), (metrics.SelfCluster, self_cluster)):
        metric = kind(4)
        metric.update(part)
        torch.testing.assert_close(metric.compute(), function(whole).float())
        metric.update(part)  # its own state is back
        torch.testing.assert_close(metric.compute(), function(torch.cat([whole, whole])).float())


def gather_uneven() -> None:
    whole, part, sizes = uneven(4)
    part.requires_grad_()
    found = distributed.gather(part, sizes=sizes)
    assert torch.equal(found, whole)
    (found * whole).sum().backward()
    torch.testing.assert_close(part.grad / distributed.world_size(), part.detach(), **TOLERANCE)
    wrong = [size + 1 for size in sizes]
    for given, message in ((None, f"have {sizes} rows"), (wrong, f"sizes={wrong}, but"), (sizes[1:], "sizes=")):
        for call in (distributed.gather, distributed.gather_for_parts, distributed.row_counts):
            try:
                call(part, sizes=given)
            except ValueError as error:
                assert message in str(error), error
                continue
            raise AssertionError("nothing was raised")


def sum_of_parts() -> None:
    """A loss cut into unequal parts: product of two sums, each process adding some of the terms."""
    whole, part, sizes = uneven(3)
    weight = torch.randn(3, 2, dtype=torch.float64)

    def terms(z: Tensor) -> Tensor:
        return torch.stack([z.square().sum(0).prod(), z.sum(), (z[0] * z[-1]).sum()])

    single = weight.clone().requires_grad_()
    expected = terms(torch.tanh(whole @ single)).sum()
    expected.backward()
    ours = weight.clone().requires_grad_()
    mine = terms(distributed.gather_for_parts(torch.tanh(part @ ours), sizes=sizes))
    mask = torch.arange(3) % distributed.world_size() == distributed.rank()
    found = distributed.sum_of_parts((mine * mask).sum())
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
            ours = run_batch_norm.SynchronisedBatchNorm.like(kind(4, **settings).double())
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


def half_precision() -> None:
    """Under autocast the losses are those of a single process, and BatchNorm normalises as PyTorch's own layer."""
    size, rank = distributed.world_size(), distributed.rank()
    spread = torch.logspace(0, -2, 16)
    whole = (torch.randn(64 * size, 16)[None] + 0.1 * torch.randn(4, 64 * size, 16)) * spread
    for exchange in ("rows", "covariances"):
        single = whole.clone().requires_grad_()
        ours = whole.chunk(size, 1)[rank].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            pairs = (
                (losses.matrix_ssl_terms(*single), parallel.matrix_ssl_terms(*ours, exchange=exchange)),
                (losses.matrix_entropy_terms(*single[:2]), parallel.matrix_entropy_terms(*ours[:2], exchange=exchange)),
            )
        for expected, found in pairs:
            torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-5, atol=1e-5)
            (whole_gradient,) = torch.autograd.grad(expected.loss, single)
            (gradient,) = torch.autograd.grad(found.loss, ours)
            tolerance = 1e-4 * float(whole_gradient.abs().max())
            torch.testing.assert_close(gradient / size, whole_gradient.chunk(size, 1)[rank], rtol=0, atol=tolerance)
    for settings in ({}, {"affine": False}):
        plain = nn.BatchNorm2d(4, **settings)
        ours = run_batch_norm.SynchronisedBatchNorm.like(nn.BatchNorm2d(4, **settings))
        whole = (torch.randn(45 * size, 4, 3, 3) + 20).bfloat16()  # 405 values a process are no number of bfloat16
        expected, found = plain(whole), ours(whole.chunk(size)[rank])
        assert found.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected.chunk(size)[rank], rtol=2**-7, atol=1e-3)  # one step of bfloat16
        torch.testing.assert_close(ours.running_mean, plain.running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-4, atol=1e-5)


def whole_network() -> None:
    """Conversion leaves names, values and the mode; a deep network then sees the whole batch."""
    torch.manual_seed(1)
    single, _ = networks.build_encoder("tiny_resnet", channels=1, image_size=8, width=8)
    torch.manual_seed(1)
    ours, _ = networks.build_encoder("tiny_resnet", channels=1, image_size=8, width=8)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    ours = run_batch_norm.synchronise_batch_norm(ours, "cpu")
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
    expected, text = (DataError, "gone") if rank == 0 else (ProcessError, f"Process {rank}: gone")
    try:
        with distributed.alone():
            raise DataError("gone")
    except MatrixSSLError as caught:
        assert (type(caught), str(caught)) == (expected, text)


class Branches(nn.Module):
    """Student and predictor with BatchNorm; DistributedDataParallel wraps it."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, d))

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(view1), self.network(view2)


LOSSES: list[dict] = [  # besides the defaults
    {"logarithm": "taylor", "ridge": 0.7, "uniformity_weight": 0.7},
    {"alignment_weight": 0.3, "algorithm": "eigh", "ridge": 0.4},
]


def matrix_ssl_loss() -> None:
    """Terms and parameter gradients under DistributedDataParallel: every split and exchange, every objective."""
    size = distributed.world_size()
    even, uneven_, reverse = [4] * size, [3 + 2 * i for i in range(size)], [2 * size - i for i in range(size)]
    for d in (3, 40):  # fewer and more than a third of the rows
        for sizes in (even, uneven_, reverse):
            for exchange in ("auto", "rows", "covariances"):
                compare_losses(d, sizes, exchange, losses.Objective())
        for settings in LOSSES:
            for exchange in ("rows", "covariances"):
                compare_losses(d, uneven_, exchange, losses.Objective(**settings))


def every_order_shared() -> None:
    """Uneven parts where several processes share each order of the loss."""
    for d in (3, 40):
        for exchange in ("rows", "covariances"):
            compare_losses(d, [3 + 2 * i for i in range(distributed.world_size())], exchange, losses.Objective())


def compare_losses(d: int, sizes: list[int], exchange: str, objective: losses.Objective) -> None:
    """The terms and gradients of one process and of this one's part of the rows."""
    rank = distributed.rank()
    whole = torch.randn(4, sum(sizes), 6, dtype=torch.float64)
    part = whole.split(sizes, 1)[rank]
    torch.manual_seed(d)
    single = Branches(d).double()
    target = torch.randn(6, d, dtype=torch.float64)
    ours = Branches(d).double()
    ours.load_state_dict(single.state_dict())
    ours = distributed.wrap(run_batch_norm.synchronise_batch_norm(ours, "cpu"))
    expected = losses.matrix_ssl_terms(*single(*whole[:2]), whole[2] @ target, whole[3] @ target, objective=objective)
    expected.loss.backward()
    found = parallel.matrix_ssl_terms(
        *ours(*part[:2]), part[2] @ target, part[3] @ target,
        exchange=exchange, sizes=None if min(sizes) == max(sizes) else sizes, objective=objective,
    )  # fmt: skip
    found.loss.backward()
    torch.testing.assert_close(tuple(found), tuple(expected), **TOLERANCE)
    for name, parameter in single.named_parameters():
        torch.testing.assert_close(ours.module.get_parameter(name).grad, parameter.grad, **TOLERANCE)


ENTROPIES: dict[str, dict] = {
    "default": {},
    "kernel": {"width": 0.5, "alignment_weight": 2.0},
    "order 2": {"order": 2.0},
    "order 1.5": {"order": 1.5},
}


def matrix_entropy_loss() -> None:
    """Terms and parameter gradients under DistributedDataParallel, even and uneven parts, either exchange."""
    size, rank = distributed.world_size(), distributed.rank()
    for d in (3, 40):  # fewer and more than half of the rows
        for name, settings in ENTROPIES.items():
            for sizes in ([4] * size, [3 + 2 * i for i in range(size)], [2 * size - i for i in range(size)]):
                whole = torch.randn(2, sum(sizes), 6, dtype=torch.float64)
                part = whole.split(sizes, 1)[rank]
                torch.manual_seed(d)
                single = Branches(d).double()
                for exchange in ("auto", "rows", "covariances"):
                    if exchange == "covariances" and (name == "kernel" or d > sum(sizes)):
                        continue  # not possible, or with the singular covariance on the side that is not exact to 1e-12
                    single.zero_grad()
                    ours = Branches(d).double()
                    ours.load_state_dict(single.state_dict())
                    ours = distributed.wrap(run_batch_norm.synchronise_batch_norm(ours, "cpu"))
                    expected = losses.matrix_entropy_terms(*single(*whole), **settings)
                    expected.loss.backward()
                    found = parallel.matrix_entropy_terms(
                        *ours(*part), exchange=exchange, sizes=None if min(sizes) == max(sizes) else sizes, **settings
                    )
                    found.loss.backward()
                    torch.testing.assert_close(tuple(found), tuple(expected), **TOLERANCE)
                    for key, parameter in single.named_parameters():
                        torch.testing.assert_close(ours.module.get_parameter(key).grad, parameter.grad, **TOLERANCE)
                    single.load_state_dict(ours.module.state_dict())  # the running statistics, too


def loss_shapes() -> None:
    """Outputs that do not fit together are an error on every process before anything is sent."""
    z, narrow = torch.randn(4, 8), torch.randn(4, 7)
    for call in (
        lambda: parallel.matrix_ssl_terms(z, z, narrow, narrow),
        lambda: parallel.matrix_entropy_terms(z, narrow),
        lambda: parallel.matrix_entropy_terms(z.unsqueeze(0), z.unsqueeze(0)),
    ):
        try:
            call()
        except ValueError as error:
            assert "of one shape (n_local, d), got [(" in str(error), error
            continue
        raise AssertionError("nothing was raised")


def loss_scale() -> None:
    """Half precision under the scale of a GradScaler is rounded after the scale: float64's gradient to its digits."""
    size, rank = distributed.world_size(), distributed.rank()
    for dtype in (torch.float16, torch.bfloat16):
        whole = (torch.randn(128 * size, 96) + 0.4 * torch.randn(4, 128 * size, 96)).to(dtype)
        exact = whole.double().requires_grad_()
        expected = losses.matrix_ssl_terms(*exact, objective=losses.Objective(ridge=1.0)).loss
        (reference,) = torch.autograd.grad(expected * 65536, exact)
        for exchange in ("rows", "covariances"):
            ours = whole.chunk(size, 1)[rank].clone().requires_grad_()
            found = parallel.matrix_ssl_terms(*ours, objective=losses.Objective(ridge=1.0), exchange=exchange).loss
            (gradient,) = torch.autograd.grad(found * 65536, ours)
            assert gradient.dtype == dtype
            part = reference.chunk(size, 1)[rank] * size  # the average over the processes takes the factor away
            error = (gradient.double() - part).norm() / part.norm()
            # one rounding, and one for every sum over the processes
            assert error < torch.finfo(dtype).eps / 2 * size, (dtype, exchange, error)


def teacher_gradient() -> None:
    """Without a stop-gradient both branches learn, as in a single process."""
    whole, part, sizes = uneven(4, 5)
    weight = torch.randn(5, 4, dtype=torch.float64)
    for exchange in ("rows", "covariances"):
        single, ours = weight.clone().requires_grad_(), weight.clone().requires_grad_()
        expected = losses.matrix_ssl_terms(*torch.tanh(whole @ single).unbind(1)).loss
        expected.backward()
        outputs = torch.tanh(part @ ours).unbind(1)
        found = parallel.matrix_ssl_terms(*outputs, exchange=exchange, sizes=sizes).loss
        found.backward()
        torch.testing.assert_close(found, expected, **TOLERANCE)
        torch.testing.assert_close(averaged(ours.grad), single.grad, **TOLERANCE)


def uneven_batch_norm() -> None:
    whole, part, sizes = uneven(4)
    whole, part = whole.requires_grad_(), part.requires_grad_()
    single = nn.BatchNorm1d(4).double()
    ours = run_batch_norm.SynchronisedBatchNorm.like(nn.BatchNorm1d(4).double())
    expected, found = single(whole), distributed.gather(ours(part), sizes=sizes)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    expected.pow(3).sum().backward()
    found.pow(3).sum().backward()
    mine = whole.grad.split(sizes)[distributed.rank()]
    torch.testing.assert_close(part.grad / distributed.world_size(), mine, **TOLERANCE)
    for name, buffer in single.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, **TOLERANCE)


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this process takes itself for the only one."""
    with mock.patch.object(torch.distributed, "is_initialized", lambda: False):
        yield


VARIANTS: dict[str, list[dict]] = {
    "matrix_entropy": [{}, {"width": 0.5}],
    "matrix_ssl": [{}, {"uniformity": "entropy", "alignment": "images"}, {"uniformity": "own", "alignment": "images"}],
    "mec": [{}, {"logarithm": "exact"}],
    "moco_v2": [{}, {"queries": "both"}],
    "kernel_infonce": [{"output_dim": 8, "kernel": "concatenation"}],
    "swav": [{"queue_size": 0, "frozen": 0.3}, {"queue_start": 0.4, "queue_size": 4 * 2}],
    "dino": [{"frozen": 0.3, "centre_momentum": 0.5}],
    "mmcr": [{"local_weight": 0.5}],
    "w_mse": [{"output_dim": 3, "rounds": 2}],
}


# a loss in parts, a teacher, a queue, codes of the whole batch, a centre, statistics of groups, and rows alone
DIFFERENT = ("matrix_ssl", "moco_v2", "swav", "dino", "w_mse", "vicreg")


def different_methods() -> None:
    """The first variant of methods that communicate in different ways; the others gather rows, as VICReg does."""
    methods(DIFFERENT, variants=1)


def methods(names: Iterable[str] | None = None, *, variants: int | None = None) -> None:
    """Loss, gradients, weights, teacher and queue of every method over two steps, as in one process."""
    for name in names or list_methods():
        for variant in VARIANTS.get(name, [{}])[:variants]:
            try:
                compare_methods(name, variant)
            except AssertionError as error:
                raise AssertionError(f"{name} {variant}: {error}") from error


def small_encoder() -> nn.Module:
    """Eight features of images with one channel; ``whole_network`` is about a deep one."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def compare_methods(name: str, variant: dict) -> None:
    size, rank = distributed.world_size(), distributed.rank()
    kind = find_method(name)
    # the queue holds a batch and a part of another, so that it overwrites parts of batches
    small = {"hidden_dim": 12, "output_dim": 9, "slices": 16, "queue_size": 6 * size + 5, "teacher_momentum": 0.7,
             "sub_batch": 4, "prototypes": 11, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}  # fmt: skip
    options = complete_options(kind, {k: v for k, v in small.items() if k in complete_options(kind, {})} | variant)
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        if kind.needs_tokens:
            network = build_encoder("timm/test_vit", channels=1, image_size=8, patch_size=2, any_size=True)
        else:
            network = small_encoder(), 8
        built.append(kind(*network, **options).double())
    single, ours = built
    run_batch_norm.synchronise_batch_norm(ours, "cpu")
    wrapped = distributed.wrap(ours)
    optimizers = [torch.optim.SGD(m.parameter_groups(), lr=0.01, momentum=0.9) for m in (single, ours)]
    for step in range(2):
        torch.manual_seed(step)
        whole = [*torch.randn(2, 4 * size, 1, 8, 8, dtype=torch.float64)]
        # a small one in the second step; timm resamples positions in float32, so that it has the whole size there
        side = 8 if kind.needs_tokens else 6
        whole += [view[..., :side, 8 - side :].contiguous() for view in whole[:step]]
        torch.manual_seed(100 + rank)  # numbers of the processes' own must not matter
        parts = [view.chunk(size)[rank] for view in whole]
        outputs = []
        for module, called, views, optimizer, group in zip(
            (single, ours), (single, wrapped), (whole, parts), optimizers, (alone(), nullcontext()), strict=True
        ):
            with group:
                module.before_step(step, 2)
                optimizer.zero_grad()
                output = called(*views)
                output.loss.backward()
                outputs.append(output)
        expected, found = outputs
        torch.testing.assert_close((found.loss, found.terms), (expected.loss, expected.terms), rtol=1e-10, atol=1e-10)
        for mine, rows_of_all in zip(found[2:], expected[2:], strict=True):
            torch.testing.assert_close(mine, rows_of_all.chunk(size)[rank], rtol=1e-9, atol=1e-9)
        for key, parameter in single.named_parameters():
            gradient = ours.get_parameter(key).grad
            assert (gradient is None) == (parameter.grad is None), key
            if gradient is not None:
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-10)
        for module, optimizer, group in zip((single, ours), optimizers, (alone(), nullcontext()), strict=True):
            with group:
                optimizer.step()
                module.after_step((step + 1) / 2)
        state = ours.state_dict()
        for key, value in single.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
            distributed_copy = distributed.gather(state[key].unsqueeze(0))
            assert all(torch.equal(copy, distributed_copy[0]) for copy in distributed_copy), key


def sharded_encoder() -> None:
    """A loop of one's own, student and teacher under fully_shard (FSDP2): steps and checkpoint of one process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # the network ends in a view, which nothing changes in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    size, rank = distributed.world_size(), distributed.rank()
    mesh = init_device_mesh("cpu", (size,))
    torch.manual_seed(0)
    single = small_encoder().double()
    ours = run_batch_norm.synchronise_batch_norm(small_encoder().double(), "cpu")
    ours.load_state_dict(single.state_dict())
    networks_of = [(network, networks.make_teacher(network)) for network in (single, ours)]
    for network in networks_of[1]:
        for layer in network:
            if isinstance(layer, nn.Conv2d):
                fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
    try:
        distributed.wrap(ours)
    except ProcessError as error:
        assert "in a loop of your own" in str(error)
    else:
        raise AssertionError("nothing was raised")
    optimizers = [torch.optim.AdamW(network.parameters(), lr=0.01) for network, _ in networks_of]
    for step in range(3):
        torch.manual_seed(step)
        whole = torch.randn(2, 4 * size, 1, 8, 8, dtype=torch.float64)
        part = whole.chunk(size, 1)[rank]
        values = []
        for (student, teacher), optimizer, (view1, view2) in zip(networks_of, optimizers, (whole, part), strict=True):
            terms = losses.matrix_ssl_terms if student is single else parallel.matrix_ssl_terms
            with alone() if student is single else nullcontext():
                optimizer.zero_grad()
                loss = terms(student(view1), student(view2), teacher(view1).detach(), teacher(view2).detach()).loss
                loss.backward()
                optimizer.step()
                networks.update_teacher(teacher, student, 0.9)
            values.append(loss.detach())
        torch.testing.assert_close(values[1], values[0], rtol=1e-10, atol=1e-10)
    for reference, network in zip(*networks_of, strict=True):
        sharded = [parameter for parameter in network.parameters() if hasattr(parameter, "full_tensor")]
        assert sharded and sum(p.to_local().numel() for p in sharded) < sum(p.numel() for p in sharded)
        state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=False))
        alone_again = small_encoder().double()
        alone_again.load_state_dict(state)  # as one process does
        for key, value in reference.state_dict().items():
            torch.testing.assert_close(alone_again.state_dict()[key], value, rtol=1e-9, atol=1e-9)
