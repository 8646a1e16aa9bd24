"""Where the time of the loss goes at two sizes, and how fast it could be: the profile behind two ratios of ``losses``.

    python -m benchmarks.speed.loss_profile            (writes benchmarks/results/loss_profile.json; minutes)
    python -m benchmarks.speed.loss_profile --quick    (tiny sizes)

Value and gradient of one order: exact at (512, 512) and Taylor at (4096, 2048), beside the published form and, as the
pace of this machine, one product of two square matrices of the smaller side, all taking turns. The time of a variant is
divided by the shares of the profiler. Operations of products are counted, 2 k m n for each, and given as products of
square matrices of the smaller side. *Products alone* is the ratio to the published form if all else took no time; the
*aim* is what was hoped for.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import command_line, save, spread, take_turns
from benchmarks.speed.loss_variants import ORDER, calls, case_inputs
from benchmarks.speed.losses import shares
from matrix_ssl.losses import Objective
from matrix_ssl.losses.order import _features, _samples

RIDGE = 0.1
OPTIONS: dict[str, dict[str, Any]] = {"exact, auto": {}, "taylor": {"logarithm": "taylor", "order": ORDER}}


class Aim(NamedTuple):
    """A variant at a size, and how many times as fast as the published form it was to be."""

    variant: str
    n: int
    d: int
    times: float
    rounds: int


AIMS = (Aim("exact, auto", 512, 512, 2.3, 11), Aim("taylor", 4096, 2048, 3.6, 3))
QUICK = (Aim("exact, auto", 24, 40, 2.3, 1), Aim("taylor", 40, 24, 3.6, 1))


class Operations(TorchDispatchMode):
    """Counts the operations of products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        name = str(function)
        if "mm" in name:
            left, right = arguments[1:3] if "addmm" in name else arguments[:2]
            self.count += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return function(*arguments, **(keywords or {}))


def measure(aim: Aim) -> dict[str, Any]:
    """Times, their division, and the ratio to the published form, reached and with products alone."""
    p, z = case_inputs(aim.n, aim.d)
    functions, m = calls(p, z, RIDGE), min(aim.n, aim.d)
    a, b = torch.randn(2, m, m).unbind()
    chosen = {name: functions[name] for name in ("published", aim.variant)} | {"one product": lambda: a @ b}
    seconds = take_turns(chosen, rounds=aim.rounds)
    part = shares(functions[aim.variant])
    objective = Objective(ridge=RIDGE, uniformity_weight=RIDGE, **OPTIONS[aim.variant])
    with Operations() as operations:
        (_samples if aim.n < aim.d else _features)(p.detach(), z.detach(), objective, [False, True])
    whole = float(np.median(seconds[aim.variant]))
    ratio = np.divide(seconds["published"], seconds[aim.variant]).tolist()
    alone = float(np.median(seconds["published"])) / (part["products"] * whole)
    return {
        **aim._asdict(), "ratio": spread(ratio), "products_alone": alone,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "parts": {kind: share * whole for kind, share in part.items() if share},
        "square_products": operations.count / (2 * m**3),
    }  # fmt: skip


def main() -> None:
    arguments = command_line(__doc__, "loss_profile.json").parse_args()
    rows = [measure(aim) for aim in (QUICK if arguments.quick else AIMS)]
    save(arguments.out, {"unit": "CPU seconds, one thread, float32, value and gradient of one order", "rows": rows})
    for row in rows:
        Console().print(
            f"{row['variant']} at {row['n']}, {row['d']}: {row['ratio']['median']:.2f} times the published form, aim "
            f"{row['times']}, products alone {row['products_alone']:.2f}; {row['square_products']:.1f} products, "
            + ", ".join(f"{kind} {1000 * part:.3g} ms" for kind, part in row["parts"].items()),
            markup=False,
        )


if __name__ == "__main__":
    main()
