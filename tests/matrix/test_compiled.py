"""``torch.compile`` without a graph break, again for a batch of a different size, such as the last of an epoch."""

import functools

import pytest
import torch

from matrix_ssl import matrix
from matrix_ssl.matrix import of_features
from tests.support.matrix_samples import rows
from tests.support.quick import some

OF_TWO = ("conditional_entropy", "dual_total_correlation", "entropy_difference_ratio", "gram_kl", "holevo_information",
          "interaction_information", "joint_entropy", "matrix_kl", "matrix_mutual_information_ratio",
          "mutual_information", "total_correlation")  # fmt: skip
OF_ONE = ("effective_rank", "gram_entropy", "min_entropy", "vendi_score", "von_neumann_entropy")
GRAMS = ("joint_entropy", "mutual_information", "dual_total_correlation")


def median_kernel(x):
    return matrix.gaussian_kernel(x, width="median")


def of_kernels(name, x, y):
    return getattr(matrix, name)(median_kernel(x), median_kernel(y))


CASES = {
    **{f"features {name}": (getattr(of_features, name), 2) for name in OF_TWO},
    **{f"features {name}": (getattr(of_features, name), 1) for name in OF_ONE},
    **{f"kernels {name}": (functools.partial(of_kernels, name), 2) for name in GRAMS},
    "rank_me": (matrix.rank_me, 1),
    "linear_cka": (matrix.linear_cka, 2),
    "cca": (matrix.cca, 2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", some(list(CASES), "features mutual_information", "kernels joint_entropy", "rank_me"))
def test_of_two_sizes(name):
    torch._dynamo.reset()
    function, count = CASES[name]
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    for n in (12, 40):  # fewer and more than there are products of columns
        arguments = [rows(n, 5, seed=seed) for seed in range(count)]
        assert compiled(*arguments).item() == pytest.approx(function(*arguments).item(), abs=1e-9)
