"""MIR and HDR of features and classifier rows while a language model trains, as a callback of transformers' trainers.

Reference: Song, Tan, Zou, Ma and Huang, "Unveiling the Dynamics of Information Interplay in Supervised Learning", ICML
2024, https://arxiv.org/abs/2406.03999.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from matrix_ssl.errors import DataError, MissingExtra
from matrix_ssl.llm.head import head_rows
from matrix_ssl.matrix import of_features

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtra("transformers", "llm", cause=error) from error

_IGNORED = -100


class InformationCallback(TrainerCallback):
    """Adds ``mir`` and ``hdr`` to the lines of a training, in [0, 1], measured on one batch that is always the same.

    The features are the last hidden states at the counted positions, the classifier rows those of their labels in the
    head. For ``Trainer``, ``MatrixTrainer`` and trl's ``SFTTrainer``; with several processes each needs the same batch.

    Args:
        batch: ``input_ids`` and ``labels`` (n, t), -100 where nothing is learned, and what else the forward takes.
        positions: at most so many counted positions, the first ones: kernels are positions x positions.
    """

    def __init__(self, batch: Mapping[str, Tensor], *, positions: int = 512):
        if "labels" not in batch or int(batch["labels"][:, 1:].ne(_IGNORED).sum()) < 2:
            raise DataError("The batch of InformationCallback needs labels with at least two counted positions.")
        self._batch, self._positions = dict(batch), positions

    def measure(self, model: Any) -> dict[str, float]:
        """``mir`` and ``hdr`` of a model now; it is left in the mode that it is in."""
        device, was_training = next(model.parameters()).device, model.training
        inputs = {name: value.to(device) for name, value in self._batch.items() if name != "labels"}
        labels = self._batch["labels"][:, 1:].to(device)
        model.eval()
        try:
            with torch.no_grad():
                hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][:, :-1]
        finally:
            model.train(was_training)
        counted = labels != _IGNORED
        features = hidden[counted][: self._positions]
        rows = head_rows(model)[labels[counted][: self._positions]]
        pair = features.double(), rows.to(features.device).double()
        return {
            "mir": of_features.matrix_mutual_information_ratio(*pair).item(),
            "hdr": of_features.entropy_difference_ratio(*pair).item(),
        }

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **_: Any) -> None:
        """Measures where a line of the training is written, for later callbacks and the history."""
        if model is not None and "loss" in (logs or {}):
            values = self.measure(model)
            logs.update(values)
            if state.log_history:
                state.log_history[-1].update(values)
