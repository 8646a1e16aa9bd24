"""trl's ``SFTTrainer`` with cross-entropy plus matrix cross-entropy.

Datasets, chat templates, packing, answer masks and adapters are trl's. Its loss, which fuses the head with the
cross-entropy, is replaced by that of ``MatrixTrainer``, which logs entropy and accuracy under trl's names.
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
    """``trl.SFTTrainer`` with the loss and the logged values of ``MatrixTrainer``."""

    def __init__(self, *args: Any, matrix: Objective = DEFAULTS, **kwargs: Any):
        """Takes the arguments of ``trl.SFTTrainer``, and the constants of the loss as ``matrix``.

        Raises:
            ConfigError: as for ``MatrixTrainer``, or ``loss_type`` is a different loss.
        """
        super().__init__(*args, matrix=matrix, **kwargs)
        if (loss := getattr(self.args, "loss_type", "nll")) != "nll":
            raise ConfigError(f"loss_type={loss!r} would replace this loss: remove it.")
