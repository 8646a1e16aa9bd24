"""MIR and HDR of features and classifier rows while a language model trains, as a callback for transformers' trainers.

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
    """Adds ``mir`` and ``hdr``, in [0, 1], to the lines of a training log, always measured on the same batch.

    The features are the last hidden states at the counted positions, and the classifier rows are those of their labels
    in the head. It works with ``Trainer``, ``MatrixTrainer`` and trl's ``SFTTrainer``; with several processes, each
    needs the same batch.

    Args:
        batch: ``input_ids`` and ``labels`` (n, t), -100 where nothing is learned, and whatever else the forward takes.
        positions: use at most this many counted positions, the first ones: kernels are positions x positions.
    """

    def __init__(self, batch: Mapping[str, Tensor], *, positions: int = 512):
        if "labels" not in batch or int(batch["labels"][:, 1:].ne(_IGNORED).sum()) < 2:
            raise DataError("The batch of InformationCallback needs labels with at least two counted positions.")
        self._batch, self._positions = dict(batch), positions

    def measure(self, model: Any) -> dict[str, float]:
        """``mir`` and ``hdr`` of a model as it is now; its training or evaluation mode is preserved."""
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
        """Measures whenever a line of the training is logged, for later callbacks and the history."""
        if model is not None and "loss" in (logs or {}):
            values = self.measure(model)
            logs.update(values)
            if state.log_history:
                state.log_history[-1].update(values)
