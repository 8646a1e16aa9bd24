"""What the losses say of arguments they are not defined for, and of constants that were meant to be learnt."""

import numpy as np
import pytest
import torch

from matrix_ssl import losses
from matrix_ssl.errors import MatrixTypeError
from matrix_ssl.matrix import gaussian_kernel
from matrix_ssl.methods.kernel_infonce import kernel_infonce_loss
from matrix_ssl.methods.simclr import simclr_loss

LOSSES = {
    "matrix_ssl": lambda z: losses.matrix_ssl_loss(z, z, z, z),
    "variant": lambda z: losses.matrix_ssl_variant_terms(z, z, z, z, uniformity="own", alignment="images"),
    "from covariances": lambda z: losses.matrix_ssl_covariance_terms(z, z, z),
    "mec": lambda z: losses.mec_loss(z, z, z, z),
    "moment": lambda z: losses.mec_moment_loss(z, samples=4),
    "matrix_entropy": lambda z: losses.matrix_entropy_loss(z, z),
    "view": losses.view_entropy,
    "covariance": losses.covariance_entropy,
    "kernel_infonce": lambda z: kernel_infonce_loss(z, z),
    "simclr": lambda z: simclr_loss(z, z),
}
X = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_no_dense_tensor_of_real_numbers(name):
    loss = LOSSES[name]
    for wrong, message in (
        (X.numpy(), r"of type numpy\.ndarray: pass torch\.from_numpy\("),
        (X.tolist(), r"of type builtins\.list: pass a torch\.Tensor"),
        (None, "NoneType"),
        (X.to_sparse(), r"to_dense\(\)"),
        (torch.complex(X, X), "complex elements, dtype torch.complex128: pass real ones"),
    ):
        with pytest.raises(MatrixTypeError, match=message):
            loss(wrong)


def test_a_batch_of_one_names_the_option_of_the_loader():
    with pytest.raises(ValueError, match=r"n ≥ 2, got \[\(1, 4\), \(1, 4\)\]\. A batch of one .* drop_last=True"):
        losses.matrix_entropy_loss(X[:1], X[:1])
    with pytest.raises(ValueError, match=r"got \[\(1, 4, 4\), \(1, 4, 4\)\]\.$"):
        losses.matrix_entropy_loss(X[None], X[None])


CONSTANTS = {
    "alignment_weight": lambda t: losses.matrix_entropy_loss(X, X, alignment_weight=t),
    "width": lambda t: losses.view_entropy(X, width=t),
    "order": lambda t: losses.covariance_entropy(X @ X.T, order=t),
    "ridge": lambda t: losses.matrix_ssl_loss(X, X, X, X, ridge=t),
    "uniformity_weight": lambda t: losses.Objective(uniformity_weight=t),
    "trace_weight": lambda t: losses.Objective(trace_weight=t),
    "distortion": lambda t: losses.mec_loss(X, X, X, X, distortion=t),
    "temperature": lambda t: kernel_infonce_loss(X, X, temperature=t),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_that_would_get_no_gradient_is_refused(name):
    learnt = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=rf"^{name} has no gradient here .*: pass {name}\.detach\(\) or a number"):
        CONSTANTS[name](learnt)
    CONSTANTS[name](learnt.detach())
    CONSTANTS[name](np.float64(0.5))
    with torch.no_grad():
        CONSTANTS[name](learnt)


def test_a_width_of_a_kernel_can_still_be_learnt():
    width = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    gaussian_kernel(X, width=width).sum().backward()
    assert width.grad > 0
