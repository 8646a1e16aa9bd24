"""Cost of the Matrix-SSL loss: forms and algorithms, alternating in one run, in CPU seconds of one thread.

    python -m benchmarks.speed.losses            (writes benchmarks/results/losses.json; about 20 minutes)
    python -m benchmarks.speed.losses --quick    (tiny sizes)

One call is the value and the gradient of one order (teacher p, student z) in float32. ``published`` is the form of the
published code (``published.py``), ``exact, ...`` and ``taylor`` are ours, ``products`` are the two products of matrices
that every form on the smaller side needs, 8 m² M operations with m = min(n, d), M = max(n, d): the floor. A ratio is
the time of ``published`` over that of the variant in the same round. Errors are relative, to the exact float64 value
and gradient of the same inputs: those of ``published`` and ``taylor`` are what the series leaves out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import command_line, save, spread, take_turns
from benchmarks.speed import loss_memory, published
from benchmarks.speed.loss_variants import ALGORITHMS, HEADLINE, ORDER, SPECTRA, calls, case_inputs, losses
from matrix_ssl.losses.logarithm.plan import choose


class Case(NamedTuple):
    """One comparison."""

    n: int
    d: int
    rounds: int
    spectrum: str = HEADLINE
    ridge: float = 0.1
    extrapolate: bool = False  # the published form from its first two terms, timed once


class Plan(NamedTuple):
    """What one run measures."""

    cases: list[Case]
    memory: list[tuple[int, int, tuple[str, ...]]]  # n, d, variants
    profile: list[tuple[int, int]]
    curves: dict[str, list[tuple[int, int]]]  # along which of n and d, and the sizes
    published_up_to: int  # a curve leaves the published form out beyond this d


def full_plan() -> Plan:
    """What is reported."""
    variants = ("published", *(f"exact, {name}" for name in ALGORITHMS), "taylor")
    return Plan(
        cases=[
            Case(256, 128, 31),
            *(Case(512, 512, 11, spectrum) for spectrum in SPECTRA),
            Case(256, 2048, 5),
            *(Case(1024, 2048, 5, spectrum) for spectrum in SPECTRA),
            *(Case(1024, 2048, 5, ridge=ridge) for ridge in (0.5, 1.0)),
            Case(4096, 2048, 3),
            Case(1024, 8192, 3, extrapolate=True),
        ],
        memory=[
            (256, 2048, variants),
            (1024, 2048, variants),
            (1024, 8192, (loss_memory.FIRST_TERM, *variants[1:])),
        ],
        profile=[(1024, 2048), (4096, 2048)],
        curves={
            "n": [(n, 2048) for n in (64, 256, 1024, 4096)],
            "d": [(1024, d) for d in (128, 512, 2048, 8192)],
        },
        published_up_to=2048,
    )


def quick_plan() -> Plan:
    """Every path once, at tiny sizes."""
    return Plan(
        cases=[Case(40, 24, 3), Case(24, 40, 3, "flat", 0.5), Case(16, 48, 3, extrapolate=True)],
        memory=[(64, 1024, ("exact, auto",))],
        profile=[(24, 40)],
        curves={"n": [(16, 24), (32, 24)], "d": [(32, 12), (32, 24)]},
        published_up_to=12,
    )


def main() -> None:
    arguments = command_line(__doc__, "losses.json").parse_args()
    plan = quick_plan() if arguments.quick else full_plan()
    console = Console()
    result: dict[str, Any] = {
        "unit": "CPU seconds, one thread, float32, value and gradient of one order",
        "quick": arguments.quick,
        "cases": [],
    }
    for case in plan.cases:
        result["cases"].append(measure(case))
        show(result["cases"][-1], console)
    result["curves"] = {axis: [curve_point(n, d, plan) for n, d in sizes] for axis, sizes in plan.curves.items()}
    result["profile"] = [profile(n, d) for n, d in plan.profile]
    result["memory"] = [loss_memory.measure(name, n, d) for n, d, names in plan.memory for name in names]
    save(arguments.out, result)


def measure(case: Case) -> dict[str, Any]:
    """Times and errors of all variants."""
    p, z = case_inputs(case.n, case.d, case.spectrum)
    functions = calls(p, z, case.ridge)
    if case.extrapolate:
        del functions["published"]
    seconds = take_turns(functions, rounds=case.rounds)
    rows: dict[str, dict[str, Any]] = {name: {"seconds": spread(values)} for name, values in seconds.items()}
    if case.extrapolate:
        rows = {"published": extrapolated(p, z, case.ridge)} | rows
        whole = rows["published"]["seconds"]["median"]
        for row in rows.values():
            row["ratio"] = {"median": whole / row["seconds"]["median"], "extrapolated": True}
    else:
        for name, row in rows.items():
            row["ratio"] = spread(np.divide(seconds["published"], seconds[name]).tolist())
    for name, error in errors(p, z, case.ridge, skip={"published"} if case.extrapolate else set()).items():
        rows[name]["error"] = error
    return {**case._asdict(), **plans(z, case.ridge), "variants": rows}


def extrapolated(p: Tensor, z: Tensor, ridge: float) -> dict[str, Any]:
    """The published form from its first term and its first two: every further term adds the same products."""

    def terms(order: int) -> Callable[[], object]:
        return lambda: torch.autograd.grad(
            published.order_loss(p, z, ridge=ridge, uniformity_weight=ridge, order=order), z
        )

    one, two = (take_turns({"": terms(order)}, rounds=1, warm_up=False)[""][0] for order in (1, 2))
    whole = one + (ORDER - 1) * (two - one)
    return {"seconds": {"median": whole}, "extrapolated": True, "one_term": one, "two_terms": two}


def errors(p: Tensor, z: Tensor, ridge: float, *, skip: set[str]) -> dict[str, dict[str, float]]:
    """Relative errors of the float32 value and gradient."""
    exact_z = z.detach().double().requires_grad_()
    exact = losses(p.double(), exact_z, ridge)["exact, eigh"]()
    (exact_gradient,) = torch.autograd.grad(exact, exact_z)
    found = {}
    for name, loss in losses(p, z, ridge).items():
        if name not in skip:
            value = loss()
            (gradient,) = torch.autograd.grad(value, z)
            found[name] = {
                "value": (value.double() - exact).abs().div(exact.abs()).item(),
                "gradient": (gradient.double() - exact_gradient).norm().div(exact_gradient.norm()).item(),
            }
    return found


def plans(z: Tensor, ridge: float) -> dict[str, Any]:
    """What each algorithm computes the logarithm with: nodes, degree, and the eigenvalue that they are made for."""
    rows = torch.nn.functional.normalize(z.detach(), dim=1)
    rows = (rows - rows.mean(0)) / len(rows) ** 0.5
    gram = rows @ rows.mT if len(rows) < rows.shape[1] else rows.mT @ rows
    largest = torch.linalg.eigvalsh(gram.double())[-1].item()
    found = {name: choose(gram @ gram, ridge, name)._asdict() for name in ALGORITHMS}
    return {"largest_eigenvalue": largest, "plans": found}


def curve_point(n: int, d: int, plan: Plan) -> dict[str, Any]:
    """Median seconds of the variants that the figure shows."""
    functions = calls(*case_inputs(n, d), 0.1)
    names = ["exact, auto", "taylor", "products", *(["published"] if d <= plan.published_up_to else [])]
    seconds = take_turns({name: functions[name] for name in names}, rounds=3)
    return {"n": n, "d": d, "seconds": {name: float(np.median(values)) for name, values in seconds.items()}}


OTHER = "elementwise and the rest"
STAGES = {
    "eigh": ("linalg_eigh", "linalg_eigvalsh"),
    "cholesky": ("cholesky", "triangular", "potr"),
    "lu, inverse": ("linalg_lu", "linalg_inv", "linalg_solve", "slogdet"),
    "products": ("mm",),
}


def profile(n: int, d: int) -> dict[str, Any]:
    """Share of the CPU time that each kind of operation takes in ``exact, auto``."""
    function = calls(*case_inputs(n, d), 0.1)["exact, auto"]
    function()
    return {"n": n, "d": d, "shares": shares(function)}


def shares(function: Callable[[], object]) -> dict[str, float]:
    """The share of the CPU time of each kind of operation, over three calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(3):
            function()
    seconds = dict.fromkeys([*STAGES, OTHER], 0.0)
    for event in recorded.key_averages():
        seconds[stage(event.key)] += event.self_cpu_time_total
    return {name: value / sum(seconds.values()) for name, value in seconds.items()}


def stage(operation: str) -> str:
    """The kind of an operation of PyTorch by its name."""
    return next((kind for kind, parts in STAGES.items() if any(part in operation for part in parts)), OTHER)


def show(case: dict[str, Any], console: Console) -> None:
    """A case as a table on the terminal."""
    auto = case["plans"]["auto"]
    title = (
        f"n={case['n']}, d={case['d']}, {case['spectrum']}, ridge {case['ridge']:g}; largest eigenvalue "
        f"{case['largest_eigenvalue']:.2g}, auto: {auto['algorithm']} {auto['size'] or ''}"
    )
    table = Table("variant", "CPU seconds", "times published", "value error", "gradient error", title=title)
    for name, row in case["variants"].items():
        error = [f"{row['error'][key]:.1e}" for key in ("value", "gradient")] if "error" in row else ["", ""]
        note = " (extrapolated)" if row.get("extrapolated") else ""
        table.add_row(name, f"{row['seconds']['median']:.4f}{note}", f"{row['ratio']['median']:.2f}", *error)
    console.print(table)


if __name__ == "__main__":
    main()
