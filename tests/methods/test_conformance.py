"""Every method passes the suite that all methods share, and the suite notices methods that are wrong."""

import collections
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from matrix_ssl.losses import unit_rows
from matrix_ssl.methods import Method, StepOutput, list_methods
from matrix_ssl.methods._masked import MaskedMethod
from matrix_ssl.methods.byol import BYOL
from matrix_ssl.methods.cor_info_max import CorInfoMax
from matrix_ssl.methods.emp_ssl import EMPSSL
from matrix_ssl.methods.kernel_infonce import KernelInfoNCE
from matrix_ssl.methods.matrix_entropy import MatrixEntropy
from matrix_ssl.methods.matrix_ssl import MatrixSSL
from matrix_ssl.methods.mec import MEC
from matrix_ssl.methods.mmcr import MMCR
from matrix_ssl.methods.moco_v2 import MoCoV2
from matrix_ssl.methods.simclr import SimCLR
from matrix_ssl.methods.simsiam import SimSiam
from matrix_ssl.methods.swav import SwAV
from tests.methods.test_methods import OWN_METHOD, own
from tests.support.conformance import ROWS, MethodConformance, views

BEFORE_BATCH_NORM = ("projector.0.bias", "projector.3.bias")  # hidden layers with a bias, as published


class EntropyConformance(MethodConformance):
    """Of the two methods whose loss repels by itself."""

    def test_it_needs_no_predictor(self, tmp_path, monkeypatch):
        """What cannot be left out is the term that repels, and the gradient's end at the teacher."""
        learned = self.learn(self.kind, tmp_path / "safe", monkeypatch, predictor=False)
        assert not any(alarm.startswith("Collapse") for alarm in learned.alarms), learned.lines[-1]
        options = {"predictor": False, **self.careless}
        careless = self.learn(self.without_safeguard(), tmp_path / "careless", monkeypatch, **options)
        assert any(alarm.startswith("Collapse") for alarm in careless.alarms), careless.lines[-1]
        assert not any(name.startswith("predictor") for name in self.build(predictor=False).state_dict())


class TestMatrixSSL(EntropyConformance):
    name = "matrix_ssl"
    careless: ClassVar = {"uniformity_weight": 0.0}

    def without_safeguard(self) -> type[Method]:
        return symmetric(MatrixSSL)

    def test_collapse_is_noticed_where_the_safeguard_is_taken_away(self, tmp_path, monkeypatch):
        self.check_that_collapse_is_noticed(tmp_path, monkeypatch)


class TestMatrixEntropy(MethodConformance):
    name = "matrix_entropy"

    def without_safeguard(self) -> type[Method]:
        class AlignmentAlone(MatrixEntropy):
            def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
                output = super().forward(view1, view2)
                z1, z2 = (unit_rows(self.projector(self.encoder(view))) for view in (view1, view2))
                return output._replace(loss=-self.alignment_weight * (z1 * z2).sum(1).mean())

        return AlignmentAlone


class TestMEC(EntropyConformance):
    name = "mec"
    careless: ClassVar = {"order": 1}  # the similarity alone

    def without_safeguard(self) -> type[Method]:
        return symmetric(MEC)

    @pytest.mark.slow  # as that of Matrix-SSL
    def test_it_needs_no_predictor(self, tmp_path, monkeypatch):
        super().test_it_needs_no_predictor(tmp_path, monkeypatch)


class TestBYOL(MethodConformance):
    name = "byol"
    silent = ("projector.3.bias",)  # BatchNorm takes it away in the predictor

    def without_safeguard(self) -> type[Method]:
        return symmetric(BYOL)

    @pytest.mark.slow  # as that of Matrix-SSL
    def test_collapse_is_noticed_where_the_safeguard_is_taken_away(self, tmp_path, monkeypatch):
        self.check_that_collapse_is_noticed(tmp_path, monkeypatch)


class TestSimSiam(MethodConformance):
    name = "simsiam"

    @contextmanager
    def frozen_targets(self, method: Method) -> Iterator[None]:
        assert isinstance(method, SimSiam)
        kept: list[Tensor] = []
        calls = iter(range(4))

        def target(output: Tensor) -> Tensor:
            call = next(calls)
            if call < 2:
                kept.append(output.detach())
            return kept[call % 2]

        method.target = target  # type: ignore[method-assign]
        yield

    def without_safeguard(self) -> type[Method]:
        class WithGradient(SimSiam):
            def target(self, output: Tensor) -> Tensor:
                return output

        return WithGradient


class TestSimCLR(MethodConformance):
    name = "simclr"

    def without_safeguard(self) -> type[Method]:
        class WithoutNegatives(SimCLR):
            def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
                output = super().forward(view1, view2)
                z1, z2 = (unit_rows(self.projector(self.encoder(view))) for view in (view1, view2))
                return output._replace(loss=-(z1 * z2).sum(1).mean() / self.temperature)

        return WithoutNegatives

    @pytest.mark.slow  # as that of Matrix-SSL
    def test_collapse_is_noticed_where_the_safeguard_is_taken_away(self, tmp_path, monkeypatch):
        self.check_that_collapse_is_noticed(tmp_path, monkeypatch)


class TestMoCoV2(MethodConformance):
    name = "moco_v2"
    learning: ClassVar = {"teacher_momentum": 0.99}

    def without_safeguard(self) -> type[Method]:
        class WithoutNegatives(MoCoV2):
            def loss(self, q: Tensor, k: Tensor) -> Tensor:
                return -(unit_rows(q) * unit_rows(k)).sum(1).mean() / self.temperature

            def teach(self, view: Tensor) -> Tensor:  # an average that stands nearly still would hide it
                return self.projector(self.encoder(view))

            def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
                output = super().forward(view1, view2)
                return output._replace(teacher=output.teacher.detach())

        return WithoutNegatives

    @pytest.mark.parametrize("queries", ["first", "both"])
    @pytest.mark.parametrize("size", [40, 10, 32])
    def test_the_queue_is_first_in_first_out(self, size: int, queries: str) -> None:
        method = self.build(queue_size=size, queries=queries)
        optimizer = self.optimizer(method)
        expected = collections.deque(method.queue.clone(), maxlen=size)
        for step, n in enumerate((ROWS, ROWS, ROWS // 2, ROWS, 3, ROWS)):
            seen = {2: views(step, n)[1], 1: views(step, n)[0]}
            keys = [method.teach(seen[view]) for view in ((1, 2) if queries == "both" else (2,))]
            before = method.queue.clone()
            method(*views(step, n))
            assert torch.equal(method.queue, before)  # not before the step is taken
            self.step(method, optimizer, step, n=n)
            expected.extend(unit_rows(torch.cat(keys)))
            found = method.queue.roll(-int(method.position), 0)
            assert torch.equal(found, torch.stack(list(expected)))
        torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(size, dtype=torch.float64))


class TestVICReg(MethodConformance):
    name = "vicreg"
    epochs = 5
    silent = BEFORE_BATCH_NORM
    careless: ClassVar = {"variance_weight": 0.0, "covariance_weight": 0.0}


class TestLeJEPA(MethodConformance):
    name = "lejepa"
    epochs = 5
    silent = BEFORE_BATCH_NORM
    careless: ClassVar = {"regularisation_weight": 0.0}


class TestBarlowTwins(MethodConformance):
    """The diagonal alone keeps every output from being constant, but not all of them from being the same."""

    name = "barlow_twins"
    careless: ClassVar = {"redundancy_weight": 0.0}


class TestCorInfoMax(MethodConformance):
    name = "cor_info_max"
    epochs = 4
    silent = BEFORE_BATCH_NORM

    def without_safeguard(self) -> type[Method]:
        class WithoutVolume(CorInfoMax):
            def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
                output = super().forward(view1, view2)
                z1, z2 = (unit_rows(self.projector(self.encoder(view))) for view in (view1, view2))
                return output._replace(loss=self.invariance_weight * (z1 - z2).square().mean())

        return WithoutVolume


class TestEMPSSL(MethodConformance):
    name = "emp_ssl"
    silent = BEFORE_BATCH_NORM

    def without_safeguard(self) -> type[Method]:
        class WithoutCodingRate(EMPSSL):
            def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
                output = super().forward(view1, view2)
                z1, z2 = (unit_rows(self.projector(self.encoder(view))) for view in (view1, view2))
                return output._replace(loss=-self.invariance_weight * (z1 * z2).sum(1).mean())

        return WithoutCodingRate


class TestMMCR(MethodConformance):
    name = "mmcr"

    def without_safeguard(self) -> type[Method]:
        class LargestValueAlone(MMCR):
            """The largest singular value of the centroids instead of the sum of all."""

            def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
                output = super().forward(view1, view2)
                z1, z2 = (unit_rows(self.projector(self.encoder(view))) for view in (view1, view2))
                return output._replace(loss=-torch.linalg.matrix_norm((z1 + z2) / 2, 2))

        return LargestValueAlone


class TestWMSE(MethodConformance):
    name = "w_mse"
    silent = ("projector.0.bias", "projector.3.bias")  # BatchNorm and the whitening subtract the mean
    careless: ClassVar = {"shrinkage": 1.0}  # nothing is whitened


class TestKernelInfoNCE(MethodConformance):
    name = "kernel_infonce"

    def without_safeguard(self) -> type[Method]:
        class WithoutNegatives(KernelInfoNCE):
            def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
                output = super().forward(view1, view2)
                z1, z2 = (unit_rows(self.projector(self.encoder(view))) for view in (view1, view2))
                return output._replace(loss=(z1 - z2).norm(dim=1).mean() / self.temperature)

        return WithoutNegatives


class TestSwAV(MethodConformance):
    name = "swav"
    silent = ("projector.0.bias",)  # BatchNorm takes it away
    careless: ClassVar = {"iterations": 0}  # a softmax of every row: codes need not be spread over the prototypes

    @contextmanager
    def frozen_targets(self, method: Method) -> Iterator[None]:
        assert isinstance(method, SwAV)
        kept, codes = [], method.codes

        def repeat(*given: Any) -> Tensor:
            kept.append(codes(*given) if len(kept) < 2 else kept[len(kept) % 2])
            return kept[-1]

        method.codes = repeat  # type: ignore[method-assign]
        yield


class TestDINO(MethodConformance):
    name = "dino"
    learning: ClassVar = {"teacher_momentum": 0.9, "head_norm": True}
    # neither centred nor sharpened; in so short a training BatchNorm alone would keep the outputs apart
    careless: ClassVar = {"centre_momentum": 1.0, "teacher_temperature": 0.1, "head_norm": False}


class TestMAE(MethodConformance):
    """Its targets are pixels, so that there is no safeguard to take away."""

    name = "mae"

    def features(self, method: Method, view: Tensor) -> Tensor:
        assert isinstance(method, MaskedMethod)
        return method.reconstruct(view, 1).features


class TestMMAE(TestMAE):
    name = "m_mae"


class TestOwnFile(MethodConformance):
    """A method of a user's own passes without a line about it; what it does not have is skipped."""

    @pytest.fixture(autouse=True)
    def file(self, tmp_path: Path) -> None:
        # a mean of squares that autocast leaves in float32, as the losses of this package do
        type(self).name = own(
            tmp_path, OWN_METHOD.replace("(f1 - f2).square().mean()", "torch.nn.functional.mse_loss(f1, f2)")
        )


def symmetric(kind: Any) -> type[Method]:
    """The method with one network on both sides, which learns on both."""

    class Symmetric(kind):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            self.predictor = nn.Identity()

        def teach(self, view: Tensor) -> Tensor:
            return self.projector(self.encoder(view))

        def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
            output = super().forward(view1, view2)
            return output._replace(teacher=output.teacher.detach())

    return Symmetric


def suites() -> dict[str, MethodConformance]:
    """One of each class here, by the method's name."""
    found = [kind() for kind in globals().values() if isinstance(kind, type) and issubclass(kind, MethodConformance)]
    return {suite.name: suite for suite in found if hasattr(suite, "name")}


def test_every_method_has_its_suite() -> None:
    assert {name for name in suites() if not name.endswith(".py")} == set(list_methods())


@pytest.mark.slow
@pytest.mark.parametrize("name", list_methods())
def test_rounding_does_not_grow_along_the_stored_losses(name: str) -> None:
    """Another order of the rows and another number of threads change the last digits only.

    Masks and the sub-batches of W-MSE belong to places in the batch, so that rows keep theirs.
    """
    suite = suites()[name]
    has_places = suite.kind.needs_tokens or name == "w_mse"
    other = [*range(ROWS)] if has_places else [*range(5, ROWS), *range(5)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count, order in ((1, [*range(ROWS)]), (2, other)):
            torch.set_num_threads(count)
            results.append(suite.trajectory(order=order))
    finally:
        torch.set_num_threads(threads)
    assert abs(results[0][-1] - results[0][0]) > 0.1  # something happens
    np.testing.assert_allclose(results[1], results[0], rtol=1e-12, atol=1e-12)
