"""Time and peak memory of the toolbox beside other programs, for n = 1k, 10k, 50k samples and widths 128 and 2048.

    python -m benchmarks.speed.toolbox           (writes benchmarks/results/toolbox.json, what takes minutes last)
    python -m benchmarks.speed.toolbox --quick   (tiny sizes)

Features (n, d) in float32, one thread, values alone, every measurement in a process of its own: CPU seconds, the least
of 3 to 100 calls, or of one that takes 20 seconds, and how far the resident memory rose above that of the process with
the features in it. Others are repitl, Vendi-Score, reptrix and torch-CKA, their formulas rewritten, and the shortest
formula in NumPy; ``floor`` is the products and eigenvalues that ours cannot do without. The command continues where it
was stopped. Kernels of n x n are left out beyond 10k samples, and at 10k measured for the width 128 alone, as
eigenvalues take nearly all of their time.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import scipy.linalg
import sklearn.decomposition
import sklearn.preprocessing
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.harness import command_line, save
from matrix_ssl import matrix
from matrix_ssl.matrix import of_features
from matrix_ssl.matrix.numerics import linalg
from matrix_ssl.runs.files import read_json

SIZES = ((1000, 128), (10_000, 128), (1000, 2048), (50_000, 128), (10_000, 2048), (50_000, 2048))
QUICK = ((200, 20), (30, 40))
LARGEST_KERNEL = 10_000
ENOUGH = ((3, 20.0), (100, 0.5))  # calls of a measurement and the seconds after which there is no further one


def entropy(weights: np.ndarray) -> float:
    p = weights[weights > 0] / weights[weights > 0].sum()
    return float(-(p * np.log(p)).sum())


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pca_spectrum(x: np.ndarray) -> np.ndarray:
    """Shares of variance by a full decomposition with its vectors, as reptrix takes them."""
    pca = sklearn.decomposition.PCA(n_components=min(2048, *x.shape), svd_solver="full")
    return pca.fit(x - x.mean(0)).explained_variance_ratio_


def reptrix_rank(x: np.ndarray) -> float:
    p = pca_spectrum(x) + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def reptrix_alpha(x: np.ndarray) -> float:
    """A fit to the ranks 11 to 100 with weights 1/r."""
    r = np.arange(11, min(101, min(x.shape) + 1))
    design = np.stack([-np.log(r), np.ones(len(r))], 1)
    weighted = design / r[:, None]
    return float(np.linalg.solve(design.T @ weighted, weighted.T @ np.log(pca_spectrum(x)[r - 1]))[0])


def vendi_score_x(x: np.ndarray) -> float:
    rows = sklearn.preprocessing.normalize(x, axis=1)
    return float(np.exp(entropy(scipy.linalg.eigvalsh(rows @ rows.T / len(x)))))


def vendi_score_dual(x: np.ndarray) -> float:
    rows = sklearn.preprocessing.normalize(x, axis=1)
    return float(np.exp(entropy(scipy.linalg.eigvalsh(rows.T @ rows / len(x)))))


def torch_cka(x: Tensor, y: Tensor) -> float:
    """The unbiased estimator from whole products of n x n kernels without their diagonals."""
    k, l = (z @ z.T for z in (x, y))  # noqa: E741
    k.fill_diagonal_(0), l.fill_diagonal_(0)
    first, second, both = (_unbiased(*pair) for pair in ((k, k), (l, l), (k, l)))
    return float(both / (first * second) ** 0.5)


def _unbiased(k: Tensor, l: Tensor) -> float:  # noqa: E741
    n, ones = len(k), torch.ones(len(k), 1)
    sums = (ones.T @ k @ ones).item() * (ones.T @ l @ ones).item() / ((n - 1) * (n - 2))
    return (k @ l).trace().item() + sums - 2 * (ones.T @ k @ (l @ ones)).item() / (n - 2)


def numpy_cka(x: np.ndarray, y: np.ndarray) -> float:
    a, b = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b))


def repitl_information(x: Tensor, y: Tensor) -> float:
    """Order one, from three decompositions with vectors."""
    k, l = (torch.nn.functional.normalize(z, dim=1) for z in (x, y))  # noqa: E741
    k, l = k @ k.T, l @ l.T  # noqa: E741
    first, second, joint = (entropy(torch.linalg.eigh(gram)[0].numpy()) for gram in (k, l, k * l))
    return first + second - joint


def numpy_information(x: np.ndarray, y: np.ndarray) -> float:
    first, second = (unit(z) @ unit(z).T for z in (x, y))
    values = [entropy(np.linalg.eigvalsh(gram)) for gram in (first, second, first * second)]
    return values[0] + values[1] - values[2]


def spectrum_floor(x: Tensor) -> Tensor:
    return linalg.eigenvalues(linalg.smaller_product(x))


def cka_floor(x: Tensor, y: Tensor) -> Tensor:
    return linalg.product(x).sum() + linalg.product(y).sum() + (x.T @ y).sum()


def of_arrays(function: Callable[..., Any], count: int) -> Callable[[Tensor, Tensor], Any]:
    """The function of the first ``count`` representations as NumPy arrays."""
    return lambda x, y: function(*(z.numpy() for z in (x, y)[:count]))


QUANTITIES: dict[str, dict[str, Callable[[Tensor, Tensor], Any]]] = {
    "RankMe": {
        "here": lambda x, y: matrix.rank_me(x),
        "NumPy, svd": of_arrays(lambda x: np.exp(entropy(np.linalg.svd(x, compute_uv=False))), 1),
        "floor": lambda x, y: spectrum_floor(x.double()),
    },
    "effective rank of the covariance": {
        "here": lambda x, y: of_features.effective_rank(x),
        "NumPy": of_arrays(lambda x: np.exp(entropy(np.linalg.eigvalsh(np.cov(x.T)))), 1),
        "reptrix": of_arrays(reptrix_rank, 1),
        "floor": lambda x, y: spectrum_floor(x),
    },
    "α-ReQ": {
        "here": lambda x, y: matrix.alpha_req(x, first=11),
        "reptrix": of_arrays(reptrix_alpha, 1),
    },
    "Vendi score": {
        "here": lambda x, y: of_features.vendi_score(x),
        "Vendi-Score, score_dual": of_arrays(vendi_score_dual, 1),
        "Vendi-Score, score_X": of_arrays(vendi_score_x, 1),
        "floor": lambda x, y: spectrum_floor(x),
    },
    "linear CKA": {
        "here": lambda x, y: matrix.linear_cka(x, y),
        "NumPy": of_arrays(numpy_cka, 2),
        "floor": cka_floor,
    },
    "unbiased linear CKA": {
        "here": lambda x, y: matrix.linear_cka(x, y, estimator="unbiased"),
        "torch-CKA": torch_cka,
    },
    "mutual information of cosine kernels": {
        "here": lambda x, y: of_features.mutual_information(x, y),
        "NumPy": of_arrays(numpy_information, 2),
        "repitl": repitl_information,
    },
}  # fmt: skip
KERNELS = ("Vendi-Score, score_X", "torch-CKA", "repitl")  # n x n whatever the width


def main() -> None:
    options = command_line(__doc__, "toolbox.json").parse_args()
    sizes = QUICK if options.quick else SIZES
    earlier = read_json(options.out) if options.out.exists() else {}
    rows: list[dict[str, Any]] = earlier["rows"] if earlier.get("sizes") == [list(size) for size in sizes] else []
    for key in sorted(jobs(sizes), key=lambda job: takes_minutes(job)):
        if any(key.items() <= row.items() for row in rows):
            continue
        reason = left_out(key)
        rows.append(key | ({"left_out": reason} if reason else in_a_process(key)))
        save(options.out, {"unit": "CPU seconds, one thread; MiB", "sizes": sizes, "rows": rows})
        Console().print(*rows[-1].values(), markup=False)


def jobs(sizes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    return [
        {"quantity": name, "form": form, "n": n, "d": d}
        for n, d in sizes for name, forms in QUANTITIES.items() for form in forms
    ]  # fmt: skip


def is_kernel(job: dict[str, Any]) -> bool:
    """Whether a measurement takes n x n matrices."""
    return job["form"] in KERNELS or job["quantity"].startswith("mutual")


def takes_minutes(job: dict[str, Any]) -> bool:
    return is_kernel(job) and job["n"] >= LARGEST_KERNEL


def left_out(job: dict[str, Any]) -> str:
    """Why a measurement is not done, or nothing."""
    if is_kernel(job) and job["n"] > LARGEST_KERNEL:
        return "n x n kernels of so many samples"
    if takes_minutes(job) and job["d"] > 128:
        return "n x n, as at the width 128"
    return ""


def in_a_process(job: dict[str, Any]) -> dict[str, Any]:
    """A measurement in a fork, or why there is none."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(sender, job))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        result = {"left_out": "ended by the system, as for a lack of memory"}
    process.join()
    return result


def send(sender: Connection, job: dict[str, Any]) -> None:
    try:
        sender.send(measure(job))
    except MemoryError as error:
        sender.send({"left_out": str(error)})


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The least CPU seconds of a few calls, the growth of the peak of resident memory in MiB, and the value."""
    function = QUANTITIES[job["quantity"]][job["form"]]
    function(*features(120, 24))  # libraries are loaded
    x, y = features(job["n"], job["d"])
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    while any(len(seconds) < calls and sum(seconds) < enough for calls, enough in ENOUGH):
        started = time.process_time()
        value = function(x, y)
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    number = None if job["form"] == "floor" else float(value)
    return {"seconds": min(seconds), "peak_mib": peak / 1024, "value": number}


def features(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Features with a decaying spectrum, and others that share a part with them; without further memory."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.arange(1, d + 1) ** -0.5
    x = torch.randn(n, d, generator=generator).mul_(decay)
    return x, torch.randn(n, d, generator=generator).mul_(0.5 * decay).add_(x)


if __name__ == "__main__":
    main()
