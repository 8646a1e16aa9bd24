"""What is in memory at the peak of the loss: the profile behind the peaks of ``losses.json``.

    python -m benchmarks.speed.loss_peak            (writes benchmarks/results/loss_peak.json; seconds)
    python -m benchmarks.speed.loss_peak --quick    (tiny sizes)

Value and gradient by the student's outputs of one order. Every tensor that an operator returns is followed from there
until its memory is freed; inputs do not count, nor what is smaller than a hundredth of a matrix. A phase begins when
its function is called: first products of the rows with each other, then logarithm and uniformity of what they gave,
and at last the gradient by the rows.
"""

import traceback
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import matrix_ssl
from benchmarks.harness import command_line, save
from benchmarks.speed.loss_variants import case_inputs
from matrix_ssl.losses import Objective
from matrix_ssl.losses.order import _features, _samples

SIZES = ((1024, 2048), (2048, 1024))
QUICK = ((24, 40), (40, 24))
PHASES = {"_logarithm": "logarithm", "_uniformity": "uniformity"}  # by the function that is being called
FIRST, LAST = "products of the rows", "gradient by the rows"
HELPERS = ("rows.py", "fused.py")  # what they return belongs to their caller
PACKAGE = str(Path(matrix_ssl.__file__).parent)


class Live(TorchDispatchMode):
    """Follows the memory of the tensors that operators return."""

    def __init__(self, inputs: tuple[Tensor, ...], least: int):
        super().__init__()
        self.least, self.inputs = least, {x.untyped_storage()._cdata for x in inputs}
        self.live: dict[int, tuple[int, str, str]] = {}  # by storage: bytes, shape, function
        self.phase = FIRST
        self.peaks: dict[str, list[tuple[int, str, str]]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
        inside = [PHASES[frame.name] for frame in frames if frame.name in PHASES]
        if inside:
            self.phase = inside[0]
        elif self.phase == PHASES["_uniformity"]:
            self.phase = LAST
        maker = next(frame.name for frame in reversed(frames) if Path(frame.filename).name not in HELPERS)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.follow(tensor, maker)
        if self.size() > sum(size for size, *_ in self.peaks.get(self.phase, [])):
            self.peaks[self.phase] = list(self.live.values())
        return result

    def follow(self, tensor: Tensor, maker: str) -> None:
        """Counts a tensor whose memory is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.live and key not in self.inputs and storage.nbytes() >= self.least:
            self.live[key] = storage.nbytes(), " x ".join(map(str, tensor.shape)), maker
            weakref.finalize(storage, self.live.pop, key)

    def size(self) -> int:
        """Bytes that are in use now."""
        return sum(size for size, *_ in self.live.values())


def measure(n: int, d: int) -> dict[str, Any]:
    """The peak of every phase, and what is there at the highest one."""
    p, z = (x.detach() for x in case_inputs(n, d))
    with Live((p, z), least=4 * min(n, d) ** 2 // 100) as live:
        (_samples if n < d else _features)(p, z, Objective(), [False, True])
    sizes = {phase: sum(size for size, *_ in tensors) for phase, tensors in live.peaks.items()}
    highest = live.peaks[max(sizes, key=sizes.__getitem__)]
    held = Counter((maker, shape) for _, shape, maker in highest)
    return {
        "n": n, "d": d,
        "phases": {
            phase: {"mib": sizes[phase] / 2**20, "tensors": dict(Counter(shape for _, shape, _ in tensors))}
            for phase, tensors in live.peaks.items()
        },
        "highest": [{"function": maker, "shape": shape, "count": count} for (maker, shape), count in held.items()],
    }  # fmt: skip


def main() -> None:
    arguments = command_line(__doc__, "loss_peak.json").parse_args()
    rows = [measure(n, d) for n, d in (QUICK if arguments.quick else SIZES)]
    save(arguments.out, {"rows": rows})
    for row in rows:
        peaks = {phase: round(peak["mib"], 1) for phase, peak in row["phases"].items()}
        Console().print(f"{row['n']}, {row['d']}: {peaks} MiB; at the highest: {row['highest']}", markup=False)


if __name__ == "__main__":
    main()
