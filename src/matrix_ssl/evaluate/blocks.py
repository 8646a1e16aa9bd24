"""The blocks of an image encoder, and their outputs.

A block is a residual block, a transformer block or the repeated unit of another kind of network: the innermost child of
a list or a sequence that has at least two weight matrices. In a network without any, the layers serve as blocks.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from matrix_ssl.errors import NotFiniteError

FEATURES = "features"  # the name of the encoder's own output
_LISTS = (nn.Sequential, nn.ModuleList)


def find_blocks(encoder: nn.Module) -> dict[str, nn.Module]:
    """The blocks of an encoder by module name, in the order in which they are defined."""
    if blocks := dict(_inside(encoder, "")):
        return blocks
    single = {name: child for name, child in encoder.named_modules() if _matrices(child) and not any(child.children())}
    return {name: child for name, child in single.items() if name}


class BlockOutputs:
    """Applies a function to the outputs of blocks immediately, since later layers may overwrite them.

    For use in a ``with`` statement, inside which the encoder runs.

    Args:
        encoder: the encoder, whose blocks are those of ``find_blocks``.
        reduce: the function, applied to an output (n, positions, k).

    Attributes:
        outputs: its results in the last forward pass, by block name; that of the encoder's own output is under
            ``FEATURES``.
    """

    def __init__(self, encoder: nn.Module, reduce: Callable[[Tensor], Any]):
        self.outputs: dict[str, Any] = {}
        self._encoder, self._reduce, self._stack = encoder, reduce, ExitStack()

    def __enter__(self) -> "BlockOutputs":
        for name, module in [*find_blocks(self._encoder).items(), (FEATURES, self._encoder)]:
            handle = module.register_forward_hook(lambda _, __, output, name=name: self._keep(name, output))
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _keep(self, name: str, output: Any) -> None:
        while isinstance(output, (tuple, list)) and output:
            output = output[0]
        if isinstance(output, Tensor) and output.ndim >= 2:
            if not output.isfinite().all():
                raise NotFiniteError(f"{name}: an output is not finite. Check the weights and the images.")
            self.outputs[name] = self._reduce(positions(output.detach()))


def positions(output: Tensor) -> Tensor:
    """An output as vectors (n, positions, k): (n, k), tokens (n, t, k), or maps (n, k, h, w) or (n, h, w, k)."""
    if output.ndim == 2:
        return output.unsqueeze(1)
    if output.ndim == 4:
        _, a, b, c = output.shape
        channels_last = a == b != c  # square maps, as in Swin
        return output.flatten(1, 2) if channels_last else output.flatten(2).mT
    return output.flatten(1, -2)


def _inside(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inner = list(_inside(child, f"{path}."))
        of_list = isinstance(module, _LISTS) and not isinstance(child, _LISTS) and _matrices(child) > 1
        repeated = len({type(block) for _, block in inner}) == 1 and len(inner) > 1
        if of_list and not (inner and (repeated or _holds_all(child, inner))):
            yield path, child
        else:
            yield from inner


def _holds_all(module: nn.Module, blocks: list[tuple[str, nn.Module]]) -> bool:
    """Whether the blocks hold nearly all weight matrices of a module, which makes it a stage composed of them."""
    return sum(_matrices(block) for _, block in blocks) >= _matrices(module) - 1


def _matrices(module: nn.Module) -> int:
    return sum(parameter.ndim > 1 for parameter in module.parameters())
