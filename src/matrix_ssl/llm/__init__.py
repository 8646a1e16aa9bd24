"""Matrix cross-entropy for language models: the loss, trainers of transformers and trl with it, fine-tuning, scoring.

Names are loaded on first use: the loss needs PyTorch, the trainers transformers and trl.
"""

import importlib
from typing import TYPE_CHECKING, Any

from matrix_ssl.llm.objective import Objective

if TYPE_CHECKING:
    from matrix_ssl.llm.finetune.sft import MatrixSFTTrainer
    from matrix_ssl.llm.finetune.trainer import MatrixTrainer
    from matrix_ssl.llm.loss.loss import (
        MatrixCrossEntropyTerms,
        matrix_cross_entropy_loss,
        matrix_cross_entropy_terms,
        matrix_cross_entropy_terms_from_logits,
    )

__all__ = [
    "MatrixCrossEntropyTerms",
    "MatrixSFTTrainer",
    "MatrixTrainer",
    "Objective",
    "matrix_cross_entropy_loss",
    "matrix_cross_entropy_terms",
    "matrix_cross_entropy_terms_from_logits",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"MatrixTrainer": "finetune.trainer", "MatrixSFTTrainer": "finetune.sft"}.get(name, "loss.loss")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
