"""Counts the decompositions of matrices that a block of code takes, by PyTorch and by NumPy, without replacing any."""

import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

TORCH = ("eigh", "eigvalsh", "svd", "svdvals", "eig")  # with and without a leading underscore
NUMPY = ("eigh", "eigvalsh", "svd", "svdvals", "eig", "eigvals")


class Decompositions(TorchDispatchMode):
    """For use in a ``with`` statement; ``names`` are what was taken, in order."""

    def __enter__(self):
        entered, self.names = super().__enter__(), []
        torch.zeros(1)  # the first operation imports much, which takes longer where it is looked at
        sys.setprofile(self._see)
        return entered

    def __exit__(self, *error):
        sys.setprofile(None)
        super().__exit__(*error)

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if operator.overloadpacket.__name__.removeprefix("_").removeprefix("linalg_") in TORCH:
            self.names.append(str(operator))
        return operator(*arguments, **keywords or {})

    def _see(self, frame, event, _):
        if event == "call" and frame.f_code.co_name in NUMPY and "numpy" in frame.f_globals.get("__name__", ""):
            self.names.append(f"numpy.{frame.f_code.co_name}")
