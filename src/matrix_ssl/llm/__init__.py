"""Matrix cross-entropy for language models."""

from matrix_ssl.llm.loss import (
    MatrixCrossEntropyTerms,
    matrix_cross_entropy_from_logits,
    matrix_cross_entropy_loss,
    matrix_cross_entropy_terms,
    matrix_cross_entropy_terms_from_logits,
)

__all__ = [
    "MatrixCrossEntropyTerms",
    "matrix_cross_entropy_from_logits",
    "matrix_cross_entropy_loss",
    "matrix_cross_entropy_terms",
    "matrix_cross_entropy_terms_from_logits",
]
