"""Matrix cross-entropy for language models: the loss, trainers for transformers and trl, fine-tuning and scoring.

Names are loaded on first use: the loss needs PyTorch, and the trainers also need transformers and trl.
"""

from typing import TYPE_CHECKING

from matrix_ssl.errors import load_on_use
from matrix_ssl.llm.objective import Objective

if TYPE_CHECKING:
    from matrix_ssl.llm.finetune.information import InformationCallback
    from matrix_ssl.llm.finetune.sft import MatrixSFTTrainer
    from matrix_ssl.llm.finetune.trainer import MatrixTrainer
    from matrix_ssl.llm.loss.loss import (
        MatrixCrossEntropyTerms,
        matrix_cross_entropy_loss,
        matrix_cross_entropy_terms,
        matrix_cross_entropy_terms_from_logits,
    )

__all__ = [
    "InformationCallback",
    "MatrixCrossEntropyTerms",
    "MatrixSFTTrainer",
    "MatrixTrainer",
    "Objective",
    "matrix_cross_entropy_loss",
    "matrix_cross_entropy_terms",
    "matrix_cross_entropy_terms_from_logits",
]

__getattr__ = load_on_use(
    __name__,
    __all__,
    (
        "matrix_ssl.llm.loss.loss",
        "matrix_ssl.llm.finetune.trainer",
        "matrix_ssl.llm.finetune.information",
        "matrix_ssl.llm.finetune.sft",
    ),
)
