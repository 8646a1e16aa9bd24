"""What a device is asked to do: its operators, the copies from the host, and that nobody looks at a value.

PyTorch's ``meta`` device has shapes and no values: reading one, or mixing it with a different device, raises.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FACTORIES = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)  # they copy what is on the host
_FREE = ("empty", "detach", "alias", "lift_fresh", "_unsafe_view")  # operators that are no work


class Operators(TorchDispatchMode):
    """Counts by name the operators on a device that are no views, and the copies to it from the host.

    A foreach operator counts once, as a GPU starts a few kernels for all of its tensors.
    """

    def __init__(self, device: str):
        super().__init__()
        self.device = device
        self.counts: Counter[str] = Counter()
        self.copies = 0
        self._values = _Values(self)

    def __enter__(self) -> "Operators":
        self._values.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._values.__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        given = [x for x in tree_leaves((arguments, keywords)) if isinstance(x, Tensor)]
        inside = [x for x in [*tree_leaves(result), *given] if isinstance(x, Tensor) and x.device.type == self.device]
        name = function._schema.name.removeprefix("aten::")
        if inside and not function.is_view and not name.startswith(_FREE):
            self.counts[name] += 1
            self.copies += any(x.device.type != self.device and x.ndim > 0 for x in given)
        return result

    @property
    def total(self) -> int:
        """Number of operators."""
        return sum(self.counts.values())


class _Values(TorchFunctionMode):
    """Adds to the copies those of numbers of Python, which no operator shows."""

    def __init__(self, operators: Operators):
        super().__init__()
        self._operators = operators

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        if function in _FACTORIES and result.device.type == self._operators.device:
            self._operators.copies += 1
        return result


def counted(device: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Operators]:
    """The result of a call, and what it asked of the device."""
    with Operators(device) as operators:
        result = function(*arguments)
    return result, operators
