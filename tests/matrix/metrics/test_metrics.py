"""Metric objects: equal to the functions on all samples, with torchmetrics and Lightning where they are installed."""

import math

import pytest
import torch

from matrix_ssl import errors, matrix
from matrix_ssl.matrix import metrics, of_features
from tests.support.matrix_samples import rows

FUNCTIONS = {
    metrics.RankMe: matrix.rank_me,
    metrics.EffectiveRank: of_features.effective_rank,
    metrics.MatrixEntropy: of_features.von_neumann_entropy,
    metrics.ParticipationRatio: matrix.participation_ratio,
    metrics.StableRank: matrix.stable_rank,
    metrics.PCARank: matrix.pca_rank,
    metrics.AlphaReQ: matrix.alpha_req,
    metrics.SelfCluster: matrix.self_cluster,
    metrics.LiDAR: lambda x: matrix.lidar(x),
}
X = rows(60, 7) * torch.arange(1, 8) ** -0.5 + 0.3
each_class = pytest.mark.parametrize("kind", FUNCTIONS, ids=lambda kind: kind.__name__)


def samples(kind):
    return X.view(30, 2, 7) if kind is metrics.LiDAR else X


@each_class
def test_all_batches_together_are_what_is_measured(kind):
    x, function = samples(kind), FUNCTIONS[kind]
    metric = kind(7)
    for part in x.split([5, 11, len(x) - 16]):
        metric.update(part)
    assert metric.compute().item() == pytest.approx(function(x).item(), rel=1e-6)
    assert metric.compute().dtype == torch.float32
    other = kind(7)
    other.update(3 * x)
    metric.merge_state(other)
    assert metric.compute().item() == pytest.approx(function(torch.cat([x, 3 * x])).item(), rel=1e-6)
    metric.reset()
    assert metric(x).item() == pytest.approx(function(x).item(), rel=1e-6)  # the value of the batch
    assert metric(2 * x).item() == pytest.approx(function(2 * x).item(), rel=1e-6)
    assert metric.compute().item() == pytest.approx(function(torch.cat([x, 2 * x])).item(), rel=1e-6)


@each_class
def test_errors(kind):
    metric, x = kind(7), samples(kind)
    with pytest.raises(errors.MatrixShapeError, match="expected"):
        metric.update(x[..., :3])
    with pytest.raises(errors.NotFiniteError):
        metric.update(x * torch.inf)
    metric.update(x)
    assert metric.compute().item() == pytest.approx(FUNCTIONS[kind](x).item(), rel=1e-6)


def test_nothing_was_added():
    torchmetrics = pytest.importorskip("torchmetrics")
    assert issubclass(metrics.RankMe, torchmetrics.Metric)
    for kind, text in ((metrics.RankMe, "No features"), (metrics.LiDAR, "0 images"), (metrics.SelfCluster, "0 sampl")):
        with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(errors.MatrixError, match=text):
            kind(7).compute()


def test_a_collection_shares_one_state():
    torchmetrics = pytest.importorskip("torchmetrics")
    kinds = [metrics.RankMe, metrics.EffectiveRank, metrics.StableRank, metrics.SelfCluster]
    collection = torchmetrics.MetricCollection([kind(7) for kind in kinds], prefix="val/")
    for part in X.split(20):
        collection.update(part)
    values = {f"val/{kind.__name__}": FUNCTIONS[kind](X).item() for kind in kinds}
    assert {name: value.item() for name, value in collection.compute().items()} == pytest.approx(values, rel=1e-6)
    assert sorted(map(len, collection.compute_groups.values())) == [1, 3]
    assert collection.clone().half()["RankMe"].moments.dtype == torch.float64


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of Lightning about PyTorch
def test_lightning_logs_an_epoch():
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.rank_me = metrics.RankMe(7)

        def validation_step(self, batch, _):
            self.rank_me.update(batch)
            self.log("rank_me", self.rank_me, on_epoch=True, batch_size=len(batch))

    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    module = Module()
    for _ in range(2):  # it is reset between epochs
        (logged,) = trainer.validate(module, torch.utils.data.DataLoader(X, batch_size=9), verbose=False)
        assert logged["rank_me"] == pytest.approx(matrix.rank_me(X).item(), rel=1e-6)


_WITHOUT = """
import sys; sys.modules["torchmetrics"] = None
import torch, matrix_ssl.matrix
for name in [name for name in sys.modules if name.startswith("matrix_ssl.matrix.metrics")]: del sys.modules[name]
del matrix_ssl.matrix.metrics
from matrix_ssl.matrix import metrics, rank_me
from matrix_ssl.matrix.metrics.without_torchmetrics import Metric
assert issubclass(metrics.RankMe, Metric)
x = torch.arange(40.0).view(10, 4).sin()
one, other = metrics.RankMe(4), metrics.RankMe(4).to("cpu")
one.update(x[:3]); other(x[3:]); one.merge_state(other)
torch.testing.assert_close(one.compute(), rank_me(x))
try: other.update(x[:, :2])
except ValueError as error: assert "expected (n, 4)" in str(error)
try: other.merge_state(metrics.LiDAR(4))
except ValueError as error: assert str(error) == "A RankMe can be merged with its own kind, got LiDAR."
else: raise SystemExit(1)
other.reset(); other.update(x)
torch.testing.assert_close(other.compute(), rank_me(x))
raise SystemExit(0)
"""


def test_without_torchmetrics(tmp_path):
    runs = pytest.importorskip("tests.support.runs", reason="the command line is not here", exc_type=ImportError)
    ended = runs.run(tmp_path, [], before=_WITHOUT)
    assert ended.code == 0, ended.err


def test_what_does_not_fit():
    with pytest.raises(errors.MatrixShapeError, match="Metrics of the widths 3 and 4 cannot be merged"):
        metrics.RankMe(3).merge_state(metrics.RankMe(4))
    for ridge in (-1.0, 0.0, math.nan):
        with pytest.raises(ValueError, match="ridge must be a finite number above zero"):
            metrics.LiDAR(3, ridge=ridge)
    metric = metrics.LiDAR(2)
    far = torch.tensor([1e9, 1e9], dtype=torch.float64)
    metric.update(torch.stack([torch.stack([k * far, -k * far]) for k in (1, 2, 3)]))
    with pytest.raises(errors.MatrixError, match=r"ridge=0\.0001 is lost in the rounding .* of width 2; scale"):
        metric.compute()


def test_self_cluster_of_a_row_whose_square_vanishes():
    """The length of a row does not matter, however small."""
    x = rows(7, 3)
    small = torch.cat([1e-170 * x[:1], x[1:]])
    expected = matrix.self_cluster(x).item()
    metric, state = metrics.SelfCluster(3), matrix.RankStatistics(3)
    metric.update(small)
    state.add(small)
    for found in (matrix.self_cluster(small), state.report().self_cluster, metric.compute()):
        assert float(found) == pytest.approx(expected, abs=1e-6)
    found = matrix.rsa(small, x, dissimilarity="cosine", correlation="pearson")
    assert found.item() == pytest.approx(1, abs=1e-12)
