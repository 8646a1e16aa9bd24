"""Matrix functions and losses under ``torch.func``: gradients by ``grad``, of many at once by ``vmap``."""

import pytest
import torch

from matrix_ssl import losses, matrix
from matrix_ssl.errors import NotFiniteError
from matrix_ssl.llm import matrix_cross_entropy_loss
from matrix_ssl.matrix import of_features
from matrix_ssl.methods.kernel_infonce import kernel_infonce_loss


def definite(n: int = 1) -> torch.Tensor:
    x = torch.randn(n, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = x.mT @ x + 0.1 * torch.eye(4)
    return a / a.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]


Q = definite()[0].flip(0, 1)
MATRICES = {
    "entropy": lambda a: matrix.von_neumann_entropy(a),
    "renyi": lambda a: matrix.renyi_entropy(a, alpha=2),
    "logarithm": lambda a: (matrix.matrix_log(a) * Q).sum(),
    "divergence": lambda a: matrix.matrix_kl(a, Q),
    "cross-entropy": lambda a: matrix.matrix_cross_entropy(Q, a, ridge=0.01),
}
FEATURES = {
    "log det": lambda z: of_features.log_det(z, ridge=0.1),
    "entropy of features": lambda z: of_features.von_neumann_entropy(z),
}


def check(function, x: torch.Tensor, *, mapped: bool = True) -> None:
    leaf = x.clone().requires_grad_()
    expected = [torch.autograd.grad(function(one), leaf)[0][i] for i, one in enumerate(leaf)]
    torch.testing.assert_close(torch.func.grad(function)(x[0]), expected[0])
    if mapped:
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(function))(x), torch.stack(expected))
        torch.testing.assert_close(torch.func.vmap(function)(x), torch.stack([function(one) for one in x]))


@pytest.mark.parametrize("name", MATRICES)
def test_functions_of_matrices(name):
    check(MATRICES[name], definite(3))


@pytest.mark.parametrize("name", FEATURES)
def test_functions_of_features(name):
    check(FEATURES[name], torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def test_losses():
    views = torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(2))
    check(lambda z: losses.matrix_ssl_loss(z, *views[1:], ridge=1.0), views[:1], mapped=False)
    check(lambda z: losses.mec_loss(z, *views[1:]), views[:1], mapped=False)
    hidden = torch.randn(2, 1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    head, labels = definite(1)[0].repeat(3, 1), torch.tensor([[0, 3, -100, 5, 11]])
    check(lambda h: matrix_cross_entropy_loss(h, head, labels), hidden, mapped=False)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.func.grad(
            lambda h: torch.func.grad(lambda x: matrix_cross_entropy_loss(x, head, labels))(h).square().sum()
        )(hidden[0])
    with pytest.raises(NotImplementedError, match=r"does not work under torch\.func\.vmap: call it for one batch"):
        torch.func.vmap(lambda z: losses.mec_loss(z, *views[1:]))(views[:1])
    with pytest.raises(NotImplementedError, match=r"vmap.* reduction='none'"):
        torch.func.vmap(lambda h: matrix_cross_entropy_loss(h, head, labels))(hidden)


VIEWS = torch.randn(4, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
LOSSES = {
    "matrix_ssl": lambda z: losses.matrix_ssl_loss(z, *VIEWS[1:], ridge=1.0),
    "from covariances": lambda z: losses.matrix_ssl_covariance_terms(*(z.T @ z / 50 for _ in range(3))).loss,
    "mec": lambda z: losses.mec_loss(z, *VIEWS[1:]),
    "moment": lambda z: losses.mec_moment_loss(z.T @ z, samples=6),
    "matrix_entropy": lambda z: losses.matrix_entropy_loss(z, VIEWS[1]),
    "view": losses.view_entropy,
    "covariance": lambda z: losses.covariance_entropy(z.T @ z),
    "kernel_infonce": lambda z: kernel_infonce_loss(z, VIEWS[1]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_second_derivative_of_a_loss_is_an_error_and_not_zero(name):
    loss, x, tangent = LOSSES[name], VIEWS[0], VIEWS[1]
    slope = torch.func.grad(loss)
    for twice in (
        lambda: torch.func.grad(lambda z: slope(z).square().sum())(x),
        lambda: torch.func.vjp(slope, x)[1](tangent),
        lambda: torch.func.jacrev(slope)(x),
    ):
        with pytest.raises(RuntimeError, match="differentiated once"):
            twice()


@pytest.mark.parametrize("name", LOSSES)
def test_vjp_of_a_loss_is_its_gradient(name):
    value, pull = torch.func.vjp(LOSSES[name], VIEWS[0])
    torch.testing.assert_close(value, LOSSES[name](VIEWS[0]))
    torch.testing.assert_close(pull(torch.ones_like(value))[0], torch.func.grad(LOSSES[name])(VIEWS[0]))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # of PyTorch about itself
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_refuses_forward_mode_instead_of_dropping_the_tangent(name):
    loss, x, tangent = LOSSES[name], VIEWS[0], VIEWS[1]
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        loss(torch.autograd.forward_ad.make_dual(x, tangent))
    for forward in (
        lambda: torch.func.jvp(loss, (x,), (tangent,)),
        lambda: torch.func.jacfwd(loss)(x),
        lambda: torch.func.hessian(loss)(x),
    ):
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            forward()


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_what_does_not_depend_on_the_scale_of_features_is_the_same_at_every_one(scale):
    x, y = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    for function in (
        of_features.von_neumann_entropy, of_features.effective_rank, lambda z: of_features.renyi_entropy(z, alpha=2),
        lambda z: of_features.renyi_entropy(z, alpha=0.5), lambda z: of_features.mutual_information(z, y),
    ):  # fmt: skip
        torch.testing.assert_close(function(x * scale), function(x), rtol=1e-5, atol=1e-6)
    gradients = []
    for factor in (1.0, scale):
        z = (x * factor).requires_grad_()
        gradients.append(torch.autograd.grad(of_features.von_neumann_entropy(z), z)[0] * factor)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    if scale > 1:
        for function in (of_features.matrix_entropy, lambda z: of_features.von_neumann_entropy(z, ridge=0.1)):
            with pytest.raises(NotFiniteError, match=r"whose squares are beyond torch\.float32: divide it"):
                function(x * scale)
