"""Matrix cross-entropy for language models: the loss, trainers of transformers and trl with it, fine-tuning, scoring.

Names are loaded when they are used: the loss needs PyTorch, the trainers transformers and trl.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matrix_ssl.llm.loss import (
        MatrixCrossEntropyTerms,
        matrix_cross_entropy_from_logits,
        matrix_cross_entropy_loss,
        matrix_cross_entropy_terms,
        matrix_cross_entropy_terms_from_logits,
    )
    from matrix_ssl.llm.objective import Objective
    from matrix_ssl.llm.sft_trainer import MatrixSFTTrainer
    from matrix_ssl.llm.trainer import MatrixTrainer

__all__ = [
    "MatrixCrossEntropyTerms",
    "MatrixSFTTrainer",
    "MatrixTrainer",
    "Objective",
    "matrix_cross_entropy_from_logits",
    "matrix_cross_entropy_loss",
    "matrix_cross_entropy_terms",
    "matrix_cross_entropy_terms_from_logits",
]

_HOMES = {"MatrixSFTTrainer": "sft_trainer", "MatrixTrainer": "trainer", "Objective": "objective"}  # others: loss


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'loss')}"), name)
