"""Products and eigenvalues by NumPy are those of PyTorch, and what somebody differentiates stays with PyTorch."""

import pytest
import torch

from matrix_ssl.errors import MatrixError, NotFiniteError
from matrix_ssl.matrix import of_features, vendi_score
from matrix_ssl.matrix.numerics import linalg
from matrix_ssl.matrix.numerics.scaling import rescaled, unit_length
from tests.support.matrix_samples import positive, rows


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (3, 9, 4), (2, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_tensors(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    product = linalg.smaller_product(x)
    torch.testing.assert_close(product, x.mT @ x if shape[-1] <= shape[-2] else x @ x.mT)
    assert torch.equal(product, product.mT) and product.dtype == dtype
    torch.testing.assert_close(linalg.eigenvalues(product), torch.linalg.eigvalsh(product), rtol=1e-4, atol=1e-5)


def test_large_matrices_of_float32_go_to_scipy():
    x = rows(320, 310).float()
    gram = linalg.smaller_product(x)
    values = linalg.eigenvalues(gram)
    assert values.dtype == torch.float32 and linalg._scipy() is not None
    torch.testing.assert_close(values, torch.linalg.eigvalsh(gram), rtol=1e-4, atol=1e-4)
    gram[3, 3] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError, match="infs or NaNs"):
        linalg.eigenvalues(gram)


@pytest.mark.parametrize("shape", [(2500, 3), (3, 2500), (2, 30, 3)])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_products_of_deviations_are_in_float64(shape, mean):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean).float()
    result = linalg.product_of_deviations(x)
    centred = x.double() - x.double().mean(-2, keepdim=True)
    expected = linalg.smaller_product(centred)
    for product in (result, linalg.product_of_deviations(x.double().requires_grad_()).detach()):
        scale = product.diagonal(dim1=-2, dim2=-1).sum(-1) / expected.diagonal(dim1=-2, dim2=-1).sum(-1)
        torch.testing.assert_close(product / scale[..., None, None], expected, rtol=1e-12, atol=1e-10)
    assert not linalg.product_of_deviations(torch.full((2500, 2), 0.1)).any()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # of PyTorch about itself
def test_what_is_followed_is_not_plain():
    x = rows(4, 3)
    assert linalg.is_plain(x) and not linalg.is_plain(x.half()) and not linalg.is_plain(x.clone().requires_grad_())
    seen = []

    def look(a):
        seen.append(linalg.is_plain(a))
        return linalg.smaller_product(a).sum()

    torch.func.vmap(look)(x[None])
    torch.func.grad(look)(x)
    with torch.autograd.forward_ad.dual_level():
        look(torch.autograd.forward_ad.make_dual(x, x))
    assert seen == [False] * 3
    with torch.no_grad():
        assert linalg.is_plain(x.clone().requires_grad_())
    assert torch.compile(linalg.smaller_product, fullgraph=True, backend="eager")(x).shape == (3, 3)


def test_values_with_and_without_a_gradient_agree():
    x = rows(12, 5)
    for function in (of_features.vendi_score, of_features.gram_entropy, of_features.min_entropy):
        torch.testing.assert_close(function(x), function(x.clone().requires_grad_()).detach(), rtol=1e-12, atol=0)
    gram = positive([0.4, 0.4, 1.2, 2.0])
    gram = gram / gram.diagonal().sqrt().outer(gram.diagonal().sqrt())
    leaf = gram.clone().requires_grad_()
    torch.testing.assert_close(vendi_score(gram), vendi_score(leaf).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-5, 1.0, 1e14, 1e300])
def test_rows_of_length_one_at_every_scale(scale):
    x = rows(6, 4)
    unit = unit_length(x * scale)
    assert torch.equal(unit, torch.nn.functional.normalize(rescaled(x * scale, (-1,)), dim=-1))
    torch.testing.assert_close(unit, unit_length(x), rtol=1e-12, atol=0)


def test_a_sum_beyond_the_range_is_no_error_but_a_value_is():
    large = torch.full((2, 2), 1e308, dtype=torch.float64) * torch.tensor([[1.0, 1], [1, 0.5]])
    of_features.vendi_score(large)
    large[1, 0] = -torch.inf
    with pytest.raises(NotFiniteError, match="1 infinite of 4 elements, the first at"):
        of_features.vendi_score(large)
    with pytest.raises(MatrixError, match="1 rows of length zero, the first at"):
        of_features.vendi_score(torch.tensor([[1e-200, 0], [0, 0]], dtype=torch.float64))
