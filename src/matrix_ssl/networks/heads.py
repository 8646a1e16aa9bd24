"""Projectors and predictors."""

import itertools

from torch import nn


def mlp(
    *widths: int,
    hidden_norm: bool = True,
    output_norm: bool = False,
    hidden_bias: bool = False,
    output_bias: bool = True,
) -> nn.Sequential:
    """Linear layers with ReLU between them, (n, widths[0]) -> (n, widths[-1]).

    ``hidden_norm`` puts BatchNorm before every ReLU, and ``output_norm`` puts one without affine parameters after the
    last layer; ``hidden_bias`` and ``output_bias`` say whether the hidden layers and the last one have a bias.
    """
    layers: list[nn.Module] = []
    for dim_in, dim_out in itertools.pairwise(widths[:-1]):
        layers.append(nn.Linear(dim_in, dim_out, bias=hidden_bias))
        layers += [nn.BatchNorm1d(dim_out)] if hidden_norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(widths[-2], widths[-1], bias=output_bias))
    layers += [nn.BatchNorm1d(widths[-1], affine=False)] if output_norm else []
    return nn.Sequential(*layers)


def projector(dim_in: int, hidden: int, dim_out: int) -> nn.Sequential:
    """SimSiam's projector: three linear layers with BatchNorm, the last not affine; (n, dim_in) -> (n, dim_out)."""
    return mlp(dim_in, hidden, hidden, dim_out, output_norm=True, output_bias=False)


def predictor(dim: int, hidden: int | None = None) -> nn.Sequential:
    """SimSiam's predictor: two linear layers, BatchNorm between; (n, dim) -> (n, dim), hidden dim // 4 by default."""
    return mlp(dim, max(1, dim // 4) if hidden is None else hidden, dim)
