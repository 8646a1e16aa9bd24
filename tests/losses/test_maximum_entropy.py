"""The maximum-entropy view: the series of MEC term by term, uniformity and coding rate, values and gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from matrix_ssl.losses import MECObjective, Objective, matrix_ssl_terms, mec_loss, mec_moment_loss
from matrix_ssl.matrix import (
    coding_rate,
    covariance,
    matrix_cross_entropy,
    matrix_entropy,
    matrix_kl,
    von_neumann_entropy,
)

shapes = pytest.mark.parametrize("shape", [(24, 7), (7, 24), (9, 9)])


def outputs(shape, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, dtype=torch.float64, generator=generator)
    noise = torch.randn(count, *shape, dtype=torch.float64, generator=generator)
    return [(base + x).requires_grad_() for x in noise]


def assert_same(found, expected, inputs):
    """Values and gradients agree."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@shapes
@pytest.mark.parametrize("distortion", [0.5, 64.0])
def test_one_term_is_simsiam(shape, distortion):
    z1, z2, p1, p2 = batch = outputs(shape)
    simsiam = -(cosine_similarity(p1, z2).mean() + cosine_similarity(p2, z1).mean()) / 2
    assert_same(mec_loss(z1, z2, p1, p2, distortion=distortion, order=1), simsiam, batch)


@shapes
def test_one_term_is_byol_up_to_a_constant(shape):
    z1, z2, p1, p2 = batch = outputs(shape)
    byol = sum((normalize(p) - normalize(z)).square().sum(1).mean() for p, z in ((p1, z2), (p2, z1))) / 2
    assert_same(2 * mec_loss(z1, z2, p1, p2, order=1) + 2, byol, batch)


@shapes
@pytest.mark.parametrize("distortion", [0.5, 5.0])
def test_second_term_compares_samples_or_features(shape, distortion):
    n, d = shape
    z1, z2, p1, p2 = batch = outputs(shape)
    settings = {"distortion": distortion}
    second = mec_loss(z1, z2, p1, p2, order=2, **settings) - mec_loss(z1, z2, p1, p2, order=1, **settings)
    by_samples = by_features = 0
    for p, z in ((p1, z2), (p2, z1)):
        similarities, moment = normalize(p) @ normalize(z).T, normalize(p).T @ normalize(z)
        by_samples = by_samples + (similarities * similarities.T).sum() / 2
        by_features = by_features + (moment * moment.T).sum() / 2
    scale = 2 * n * (n * distortion / d)
    assert_same(second, by_samples / scale, batch)
    assert_same(mec_loss(z1, z2, p1, p2, order=2, **settings) - mec_loss(z1, z2, p1, p2, order=1, **settings),
                by_features / scale, batch)  # fmt: skip


@shapes
def test_two_terms_are_the_spectral_contrastive_loss(shape):
    (z,) = outputs(shape, count=1)
    similarities = normalize(z) @ normalize(z).T
    contrastive = -2 * similarities.diagonal().mean() + similarities.square().mean()
    assert_same(2 * mec_loss(z, z, z, z, distortion=shape[1], order=2), contrastive, [z])


@pytest.mark.parametrize("shape", [(24, 7), (9, 9)])
def test_two_terms_are_barlow_twins_up_to_its_asymmetry(shape):
    n, d = shape
    p, z = batch = outputs(shape, count=2)
    a, b = ((x - x.mean(0)) / x.std(0, correction=0) for x in batch)
    c = a.T @ b / n
    on_diagonal = (c.diagonal() - 1).square().sum()
    off_diagonal = c.square().sum() - c.diagonal().square().sum()
    asymmetry = (c - c.T).square().sum() / 2
    found = d + 2 * mec_moment_loss(n * c, samples=n, objective=MECObjective(distortion=d, order=2)) + asymmetry
    torch.testing.assert_close(found, on_diagonal + off_diagonal, rtol=1e-10, atol=1e-12)
    found_gradient = torch.autograd.grad(found, (p, z), retain_graph=True)
    expected = torch.autograd.grad(on_diagonal + off_diagonal, (p, z))
    for x, y in zip(found_gradient, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-11)


@shapes
def test_two_terms_are_a_variance_and_a_covariance_term(shape):
    n, d = shape
    (z,) = outputs(shape, count=1)
    s = covariance(z)
    variance = (s.diagonal() - 1).square().sum()
    vicreg_covariance = (s.square().sum() - s.diagonal().square().sum()) / d
    found = mec_moment_loss(n * s, samples=n, objective=MECObjective(distortion=d, order=2))
    torch.testing.assert_close(found, (variance + d * vicreg_covariance - d) / 2, rtol=1e-10, atol=1e-12)


@shapes
@pytest.mark.parametrize("distortion", [0.1, 2.0])
def test_all_terms_are_the_coding_rate(shape, distortion):
    (z,) = outputs(shape, count=1)
    exact = mec_loss(z, z, z, z, distortion=distortion**2, logarithm="exact")
    rate = coding_rate(normalize(z), distortion=distortion)
    assert_same(exact, -2 * distortion**2 / shape[1] * rate, [z])


@shapes
def test_the_series_tends_to_the_determinant(shape):
    z1, z2, p1, p2 = outputs(shape)
    exact = mec_loss(z1, z2, p1, p2, distortion=40.0, logarithm="exact")
    errors = [abs(mec_loss(z1, z2, p1, p2, distortion=40.0, order=k) - exact).item() for k in (1, 2, 4, 8, 16)]
    assert all(a > 2 * b for a, b in itertools.pairwise(errors) if b > 1e-14) and errors[-1] < 1e-9


@pytest.mark.parametrize("d", [1, 3, 8])
def test_divergence_to_the_identity_is_what_entropy_lacks(d):
    x = torch.from_numpy(np.random.default_rng(d).standard_normal((d, d)))
    a = x @ x.T + 0.01 * torch.eye(d, dtype=torch.float64)
    a = a / a.trace()
    uniform = torch.eye(d, dtype=torch.float64) / d
    assert matrix_kl(a, uniform).item() == pytest.approx(math.log(d) - von_neumann_entropy(a).item(), abs=1e-12)
    assert matrix_kl(uniform, a).item() == pytest.approx(-math.log(d) - torch.logdet(a).item() / d, abs=1e-12)
    assert matrix_entropy(uniform).item() == pytest.approx(math.log(d) + 1)


@shapes
@pytest.mark.parametrize("ridge", [0.02, 0.7])
def test_uniformity_is_a_cross_entropy_and_a_coding_rate(shape, ridge):
    d = shape[1]
    (z,) = outputs(shape, count=1)
    rows = normalize(z.detach())
    terms = matrix_ssl_terms(z, z, z, z, objective=Objective(ridge=ridge, uniformity_weight=0.3, alignment_weight=0.0))
    identity = torch.eye(d, dtype=torch.float64)
    shifted = covariance(rows) + ridge * identity
    entropy = matrix_cross_entropy(0.3 * identity, shifted) - shifted.trace()
    torch.testing.assert_close(terms.uniformity, entropy, rtol=1e-10, atol=1e-12)
    centred = normalize(z) - normalize(z).mean(0)
    rate = coding_rate(centred, distortion=math.sqrt(ridge * d))
    assert_same(terms.loss, -0.3 * (2 * rate + d * math.log(ridge)), [z])
