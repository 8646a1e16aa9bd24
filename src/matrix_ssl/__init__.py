"""Matrix-information self-supervised learning on PyTorch.

``pretrain``, ``open``, ``Run``, ``Collection`` and ``EncoderTransformer`` cover the whole pipeline. Import losses and
everything else from their modules, for example ``from matrix_ssl.losses import matrix_ssl_loss``. Importing the package
itself does no work and does not load torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matrix_ssl.api.collection import Collection
    from matrix_ssl.api.estimator import EncoderTransformer
    from matrix_ssl.api.opening import open
    from matrix_ssl.api.pretraining import pretrain
    from matrix_ssl.api.run import Run

__version__ = "0.1.0"

__all__ = ["Collection", "EncoderTransformer", "Run", "__version__", "diagnose", "measure", "open", "pretrain"]

_MODULES = {
    "Collection": "collection", "EncoderTransformer": "estimator", "Run": "run", "diagnose": "diagnosing",
    "measure": "measuring", "open": "opening", "pretrain": "pretraining",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.api.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
