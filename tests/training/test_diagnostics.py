"""What a run watches: against closed forms, and alarms that sound when they should and only then."""

import math

import numpy as np
import pytest
import torch

from matrix_ssl.losses import Objective, matrix_ssl_terms
from matrix_ssl.matrix import von_neumann_entropy
from matrix_ssl.training.diagnostics import alarms, describe, information, is_finite


def line(*, rank=40.0, projection=30.0, spread=0.6, similarity=0.9, negative=0, entropy=None):
    return {
        "effective_rank": rank,
        "matrix_entropy": math.log(rank) if entropy is None else entropy,
        "effective_rank_projection": projection,
        "spread_projection": spread,
        "teacher_similarity": similarity,
        "negative_determinants": negative,
    }


class TestDescribe:
    def test_a_flat_spectrum(self):
        axes = torch.cat([torch.eye(6), -torch.eye(6)])  # covariance I/6
        student = axes[:, :4] + 0.0
        values, eigenvalues = describe(axes, student, student)
        np.testing.assert_allclose(eigenvalues, np.full(6, 1 / 6), rtol=1e-6)
        assert values["effective_rank"].item() == pytest.approx(6, rel=1e-5)
        assert values["matrix_entropy"].item() == pytest.approx(math.log(6), rel=1e-5)
        assert values["effective_rank_projection"].item() == pytest.approx(4, rel=1e-5)

    def test_agrees_with_numpy(self):
        r = np.random.default_rng(0)
        features, student, teacher = (
            r.normal(size=(30, 9)) * np.arange(1, 10),
            r.normal(size=(30, 5)),
            r.normal(size=(30, 5)),
        )
        values, eigenvalues = describe(*(torch.from_numpy(x) for x in (features, student, teacher)))
        p = np.linalg.eigvalsh(np.cov(features.T))[::-1]
        p = p / p.sum()
        np.testing.assert_allclose(eigenvalues, p, rtol=1e-10)
        assert values["matrix_entropy"].item() == pytest.approx(-(p * np.log(p)).sum())
        cosines = (student * teacher).sum(1) / np.linalg.norm(student, axis=1) / np.linalg.norm(teacher, axis=1)
        assert values["teacher_similarity"].item() == pytest.approx(cosines.mean())
        assert values["spread_projection"].item() == pytest.approx(math.sqrt(np.mean(student.std(0) ** 2)))

    def test_collapsed_features(self):
        same = torch.full((20, 8), 0.3)
        values, _ = describe(same, same, -same)
        assert values["effective_rank"].item() == pytest.approx(1, abs=1e-3)
        assert values["matrix_entropy"].item() == pytest.approx(0, abs=1e-3)
        assert values["teacher_similarity"].item() == pytest.approx(-1)


class TestAlarms:
    def test_silence_while_all_is_well(self):
        assert alarms([line() for _ in range(20)]) == []

    def test_no_judgement_on_few_lines(self):
        assert alarms([]) == []
        assert alarms([line(rank=1.0, projection=1.0, similarity=-1.0)] * 4) == []

    def test_collapse(self):
        found = alarms([line(), line()] + [line(rank=1.5, projection=1.2)] * 5)
        assert len(found) == 1
        assert "Collapse: the features span 1.5 directions" in found[0]

    def test_low_rank_that_still_grows_is_no_collapse(self):
        assert alarms([line(rank=r, projection=9.0) for r in (1.2, 1.6, 2.0, 2.4, 2.8)]) == []

    def test_recovery_ends_the_alarm(self):
        assert alarms([line(rank=1.5)] * 5 + [line()]) == []

    def test_projections_alone(self):
        (found,) = alarms([line(projection=1.4)] * 5)
        assert "projections: they span 1.4 directions while the features still span 40.0" in found

    def test_projections_that_shrink_to_a_point_in_all_directions_alike(self):
        (found,) = alarms([line()] * 3 + [line(spread=0.6 * 0.09)] * 5)
        assert "Collapse to a point: the projections spread 0.09 times as far as in the first line" in found
        assert alarms([line()] * 3 + [line(spread=0.6 * 0.11)] * 5) == []
        assert alarms([line()] * 3 + [line(spread=0.01)] * 4) == []
        assert alarms([line()] * 3 + [line(spread=0.01)] * 4 + [line()]) == []

    def test_lines_of_earlier_versions_have_no_spread(self):
        before = {k: v for k, v in line().items() if k != "spread_projection"}
        assert alarms([before] * 3 + [line(spread=0.01)] * 5) == []

    def test_branches_that_point_apart(self):
        (found,) = alarms([line(similarity=-0.2)] * 5)
        assert "mean cosine is -0.20" in found
        assert alarms([line(similarity=-0.2)] * 4 + [line(similarity=0.1)]) == []

    def test_new_negative_determinants_only(self):
        assert alarms([line(negative=3), line(negative=3)]) == []
        (found,) = alarms([line(negative=3), line(negative=5)])
        assert "negative 2 times since the last line" in found
        (first,) = alarms([line(negative=1)])
        assert "negative 1 times" in first

    def test_methods_without_that_count(self):
        lines = [{k: v for k, v in line().items() if k != "negative_determinants"}] * 6
        assert alarms(lines) == []

    def test_a_batch_that_provokes_it(self):
        z = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        objective = Objective(ridge=1e-3, uniformity_weight=1.0)
        count = matrix_ssl_terms(z, z, -z, -z, objective=objective).negative_determinants
        assert alarms([line(), line(negative=int(count))])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_is_finite(bad):
    assert is_finite(torch.ones(2), torch.zeros(()))
    assert not is_finite(torch.ones(2), torch.tensor([[1.0, bad]]))
    assert not is_finite(torch.tensor(bad), torch.ones(2))


def test_what_two_branches_share():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 600, 6, generator=generator)
    found = information(x, y)
    kernels = [torch.nn.functional.normalize(rows[:512].double(), dim=1) for rows in (x, y)]
    single = [von_neumann_entropy(rows @ rows.mT).item() for rows in kernels]
    joint = von_neumann_entropy((kernels[0] @ kernels[0].mT) * (kernels[1] @ kernels[1].mT)).item()
    assert found["mir"] == pytest.approx((sum(single) - joint) / min(single), rel=1e-9)
    assert found["hdr"] == pytest.approx(abs(single[0] - single[1]) / max(single), abs=1e-12)
    assert information(x, -2 * x)["hdr"] == pytest.approx(0, abs=1e-12)
