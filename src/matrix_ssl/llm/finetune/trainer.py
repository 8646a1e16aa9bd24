"""transformers' ``Trainer`` with cross-entropy plus matrix cross-entropy, and the callback that records a run.

The loss comes from the logits of the model's forward, so the hooks of DistributedDataParallel and FSDP, adapters,
scaled or capped logits and gradient checkpointing stay as they are. Sums are divided by ``num_items_in_batch``, the
labels of a step, and multiplied by the number of processes, because DistributedDataParallel averages gradients: as the
Trainer does for the model's own loss. So with ``weight=0`` the training is that of ``Trainer``, up to rounding.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from matrix_ssl import distributed
from matrix_ssl.errors import ConfigError, DataError, MissingExtra, TrainingError
from matrix_ssl.llm.head import check_vocabulary, head_rows, head_shape
from matrix_ssl.llm.loss.loss import matrix_cross_entropy_terms_from_logits
from matrix_ssl.llm.objective import DEFAULTS, Objective, check_objective
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.metrics import MetricsWriter

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise MissingExtra("transformers", "llm") from error

_SECONDS_BETWEEN_LINES = 10.0
_KEYS = ("loss", "ce", "mce", "grad_norm", "learning_rate", "epoch")


def check_trainable(model: Any, tokenizer: Any, arguments: Any, matrix: Objective) -> None:
    """Checks that a model can be trained with the loss, under ``TrainingArguments`` and with a tokenizer or None."""
    vocabulary, d = head_shape(model)
    check_objective(matrix, vocabulary=vocabulary, d=d)
    if hasattr(tokenizer, "get_vocab"):
        check_vocabulary(model, tokenizer)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__} is an encoder with a decoder: the loss is for causal models.")
    if arguments.label_smoothing_factor:
        raise ConfigError(
            f"label_smoothing_factor={arguments.label_smoothing_factor} is not part of this loss: set it to 0, or use "
            f"transformers.Trainer to compare with label smoothing."
        )
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"One process sees {arguments.n_gpu} GPUs: start a process for each with torchrun or accelerate launch, or "
            f"select one GPU with CUDA_VISIBLE_DEVICES."
        )


class MatrixTrainer(Trainer):
    """``transformers.Trainer`` whose loss is cross-entropy plus ``matrix.weight`` times matrix cross-entropy.

    It trains whole models and those that peft has wrapped, and logs ``ce`` and ``mce``, in nats: means over the tokens
    of all micro-batches and processes of a step, and over the steps since the last line, so that
    ``loss = ce + matrix.weight · mce`` in every line.

    Reference: Zhang et al., ICML 2024; an interpretation, see ``matrix_ssl.llm.loss.loss``.
    """

    # the library's parameters change from release to release: all are passed on
    def __init__(self, *args: Any, matrix: Objective = DEFAULTS, **kwargs: Any):
        """Takes the arguments of ``transformers.Trainer``, and the constants of the loss as ``matrix``.

        Raises:
            ConfigError: the model has no suitable head, the tokenizer has tokens without a row, a constant of the loss
                is out of range, or an argument is not supported by the loss.
        """
        super().__init__(*args, **kwargs)
        check_trainable(self.model, self.processing_class, self.args, matrix)
        if self.compute_loss_func is not None:
            raise ConfigError("compute_loss_func would replace this loss: remove it.")
        self.matrix = matrix
        self.model_accepts_loss_kwargs = True  # labels are counted whatever the model's forward takes,
        self._loss_shifts_labels = True  # all but the first of each sequence, which nothing predicts
        self._sums: Tensor | None = None  # (2,), of ce and mce since the step below
        self._since = 0

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:  # fmt: skip
        """The loss of a micro-batch, ready for the backward pass, and the forward's outputs with ``return_outputs``.

        Args:
            model: the model of the Trainer, wrapped or not.
            inputs: arguments of its forward, and ``labels`` (batch, positions), unshifted.
            num_items_in_batch: labels counted in a step; None for the mean over this micro-batch.

        Raises:
            ConfigError: the forward returns no logits, or an auxiliary loss of experts.
            DataError: labels are missing or already shifted.
            NotFiniteError: the cross-entropy is NaN or infinite; detected here on the CPU, elsewhere in the log.
        """
        labels = inputs.get("labels")
        if labels is None or "shift_labels" in inputs:
            what = "no labels" if labels is None else "shift_labels, as for context or sequence parallelism"
            raise DataError(f"A batch has {what}: the loss needs one label for each position, unshifted.")
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        if getattr(outputs, "aux_loss", None) is not None:
            raise ConfigError(
                "The model returns an auxiliary loss of its experts, which this loss ignores: set "
                "output_router_logits=False in its configuration."
            )
        terms = matrix_cross_entropy_terms_from_logits(
            _logits(outputs), head_rows(self.model), labels,
            objective=self.matrix, num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
        scale = 1
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            scale = self.accelerator.num_processes // self.get_tp_size()  # processes that share a batch count once
        if model.training:
            self._note(torch.stack([terms.ce, terms.mce]) * scale)
        loss = terms.loss * scale
        return (loss, outputs) if return_outputs else loss

    def _note(self, ce_and_mce: Tensor) -> None:
        if self._sums is None:
            self._sums, self._since = torch.zeros_like(ce_and_mce), self.state.global_step
        self._sums += ce_and_mce

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds ``ce`` and ``mce`` to a line of the training; raises TrainingError if ``ce`` is NaN or infinite."""
        if "loss" in logs and self._sums is not None:
            steps = self.state.global_step - self._since
            logs["ce"], logs["mce"] = (self.accelerator.gather(self._sums.unsqueeze(0)).mean(0) / steps).tolist()
            if not math.isfinite(logs["ce"]):
                raise TrainingError(
                    f"The cross-entropy of steps {self._since + 1} to {self.state.global_step} is {logs['ce']}: lower "
                    f"the learning rate, or use bfloat16 instead of float16, and resume from the last checkpoint."
                )
            self._sums = None
        super().log(logs, start_time)


class Recorder(TrainerCallback):
    """Appends to ``metrics.jsonl``, and stops the training after a checkpoint if any process received a signal."""

    def __init__(self, run: Path, *, after_step: int, received: list[int], display: Display):
        """Drops the lines after ``after_step``; ``received`` collects the numbers of signals."""
        self.stopped_by = 0  # number of a signal, 0 for none
        self._writer = MetricsWriter(run, after_step=after_step) if distributed.is_main() else None
        self._received, self._display, self._last_line = received, display, 0.0

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of the run; empty except on the main process."""
        return self._writer.history if self._writer is not None else []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Writes a line of the training."""
        if self._writer is None or "loss" not in logs:
            return
        self._writer.write({"step": state.global_step, **{key: logs[key] for key in _KEYS if key in logs}})
        if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or state.global_step == state.max_steps:
            self._last_line = time.monotonic()
            text = "  ".join(f"{key} {logs[key]:.4g}" for key in ("loss", "ce", "mce"))
            self._display.say(f"step {state.global_step}/{state.max_steps}  {text}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agrees with the other processes on whether to stop."""
        mine = torch.tensor(self._received[0] if self._received else 0, device=args.device)
        self.stopped_by = int(distributed.maximum(mine))
        if self.stopped_by:
            control.should_save = control.should_training_stop = True


def _logits(outputs: Any) -> Tensor:
    if (logits := getattr(outputs, "logits", None)) is None:
        raise ConfigError(
            "The model's forward returns no logits because a fused cross-entropy replaces them: switch off Liger's "
            "(use_liger_kernel=False, or fused_linear_cross_entropy and cross_entropy False in liger_kernel_config), "
            "cut cross-entropy, or any other replacement of the forward."
        )
    return logits
