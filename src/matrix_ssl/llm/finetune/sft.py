"""trl's ``SFTTrainer`` with cross-entropy plus matrix cross-entropy.

Datasets, chat templates, packing, masks of answers and adapters are those of trl. Its loss, from a head that is fused
with the cross-entropy, is replaced by that of ``MatrixTrainer``, which logs entropy and accuracy under trl's names.
"""

from typing import Any

from matrix_ssl.errors import ConfigError, MissingExtra
from matrix_ssl.llm.finetune.trainer import MatrixTrainer
from matrix_ssl.llm.objective import DEFAULTS, Objective

try:
    from trl import SFTTrainer
except ImportError as error:
    raise MissingExtra("trl", "llm", cause=error) from error


class MatrixSFTTrainer(MatrixTrainer, SFTTrainer):
    """``trl.SFTTrainer`` with the loss of ``MatrixTrainer``, which logs the same values."""

    def __init__(self, *args: Any, matrix: Objective = DEFAULTS, **kwargs: Any):
        """Takes the arguments of ``trl.SFTTrainer``, and the constants of the loss as ``matrix``.

        Raises:
            ConfigError: as for ``MatrixTrainer``, or ``loss_type`` is a different loss.
        """
        super().__init__(*args, matrix=matrix, **kwargs)
        if (loss := getattr(self.args, "loss_type", "nll")) != "nll":
            raise ConfigError(f"loss_type={loss!r} would replace this loss: remove it.")
