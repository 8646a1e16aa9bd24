"""transformers' ``Trainer`` with cross-entropy plus matrix cross-entropy; everything else is the library's.

The loss is computed from the logits that the model's forward gives, so the hooks of DistributedDataParallel and FSDP,
adapters, scaled or capped logits and gradient checkpointing stay as they are. The rows of the head are looked up beside
it, without gradient.

Sums are divided by ``num_items_in_batch``, the labels counted in all micro-batches and processes of a step, and
multiplied by the number of processes, because DistributedDataParallel averages gradients: as the Trainer does it for
the model's own loss. So with ``weight=0`` the training is that of ``Trainer``, up to rounding.
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
    """Checks that a model can be trained by the loss.

    Args:
        tokenizer: what the Trainer calls ``processing_class``, or None.
        arguments: ``transformers.TrainingArguments``.

    Raises:
        ConfigError: the model has no head that the loss could use, the tokenizer has tokens without a row, a constant
            of the loss is out of range, or the arguments ask for what the loss cannot do.
    """
    vocabulary, d = head_shape(model)
    check_objective(matrix, vocabulary=vocabulary, d=d)
    if hasattr(tokenizer, "get_vocab"):
        check_vocabulary(model, tokenizer)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__} is an encoder with a decoder: the loss is for causal models.")
    if arguments.label_smoothing_factor:
        raise ConfigError(
            f"label_smoothing_factor={arguments.label_smoothing_factor} is not part of this loss: set it to 0, and use "
            f"transformers.Trainer for a comparison with label smoothing."
        )
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"one process sees {arguments.n_gpu} GPUs: start one for each by torchrun or accelerate launch, or show it "
            f"a single one by CUDA_VISIBLE_DEVICES."
        )


class MatrixTrainer(Trainer):
    """``transformers.Trainer`` whose loss is cross-entropy plus ``matrix.weight`` times matrix cross-entropy.

    Whole models and those that peft has wrapped. The log gets ``ce`` and ``mce``, in nats: means over the tokens of all
    micro-batches and processes of a step, and over the steps since the last line, so that
    ``loss = ce + matrix.weight · mce`` in every line.

    Reference: Zhang, Tan, Yang, Huang and Yuan, "Matrix Information Theory for Self-Supervised Learning", ICML 2024; an
    interpretation, see ``matrix_ssl.llm.loss``.
    """

    # The library's constructor has many parameters, which change from release to release: all are passed on.
    def __init__(self, *args: Any, matrix: Objective = DEFAULTS, **kwargs: Any):
        """Takes what ``transformers.Trainer`` takes.

        Args:
            matrix: the constants of the loss.

        Raises:
            ConfigError: as ``check_trainable``, or another loss is asked for, too.
        """
        super().__init__(*args, **kwargs)
        check_trainable(self.model, self.processing_class, self.args, matrix)
        if self.compute_loss_func is not None:
            raise ConfigError("compute_loss_func would be another loss: leave it out.")
        self.matrix = matrix
        self.model_accepts_loss_kwargs = True  # labels are counted whatever the model's forward takes,
        self._loss_shifts_labels = True  # all but the first of every sequence, which nothing predicts
        self._sums: Tensor | None = None  # (2,), of ce and mce since the step below
        self._since = 0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """The loss of a micro-batch, ready for the backward pass.

        Args:
            model: what the Trainer trains, wrapped or not.
            inputs: arguments of its forward, and ``labels`` (batch, positions), unshifted.
            return_outputs: also return what the forward gave.
            num_items_in_batch: labels counted in a step; None for the mean over this micro-batch.

        Raises:
            ConfigError: the forward gives no logits, or an auxiliary loss of experts.
            DataError: there are no labels, or they are shifted already.
            NotFiniteError: the cross-entropy is NaN or infinite; noticed here on the CPU, elsewhere in the log.
        """
        labels = inputs.get("labels")
        if labels is None or "shift_labels" in inputs:
            what = "no labels" if labels is None else "shift_labels, as for context or sequence parallelism"
            raise DataError(f"a batch has {what}: the loss needs labels, one for each position and unshifted.")
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        if getattr(outputs, "aux_loss", None) is not None:
            raise ConfigError(
                "the model gives an auxiliary loss of its experts, which this loss does not add: set "
                "output_router_logits=False in its configuration."
            )
        terms = matrix_cross_entropy_terms_from_logits(
            _logits(outputs),
            head_rows(self.model),
            labels,
            objective=self.matrix,
            num_items_in_batch=num_items_in_batch,
        )
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
        """Adds ``ce`` and ``mce`` to a line of the training.

        Raises:
            TrainingError: the cross-entropy is NaN or infinite.
        """
        if "loss" in logs and self._sums is not None:
            steps = self.state.global_step - self._since
            logs["ce"], logs["mce"] = (self.accelerator.gather(self._sums.unsqueeze(0)).mean(0) / steps).tolist()
            if not math.isfinite(logs["ce"]):
                raise TrainingError(
                    f"the cross-entropy of steps {self._since + 1} to {self.state.global_step} is {logs['ce']}: lower "
                    f"the learning rate, or compute in bfloat16 instead of float16, and go on from the last checkpoint."
                )
            self._sums = None
        super().log(logs, start_time)


class Recorder(TrainerCallback):
    """Appends to ``metrics.jsonl`` and stops the training after a checkpoint when a signal has come to any process."""

    def __init__(self, run: Path, *, after_step: int, received: list[int], display: Display):
        """Drops the lines after ``after_step``; ``received`` grows when signals come."""
        self.stopped_by = 0  # number of a signal
        self._writer = MetricsWriter(run, after_step=after_step) if distributed.is_main() else None
        self._received, self._display, self._said = received, display, 0.0

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of the run; on other processes than the main one, none."""
        return self._writer.history if self._writer is not None else []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Writes a line of the training."""
        if self._writer is None or "loss" not in logs:
            return
        self._writer.write({"step": state.global_step, **{key: logs[key] for key in _KEYS if key in logs}})
        if time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES or state.global_step == state.max_steps:
            self._said = time.monotonic()
            text = "  ".join(f"{key} {logs[key]:.4g}" for key in ("loss", "ce", "mce"))
            self._display.say(f"step {state.global_step}/{state.max_steps}  {text}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agrees with the other processes on whether to go on."""
        mine = torch.tensor(self._received[0] if self._received else 0, device=args.device)
        self.stopped_by = int(distributed.maximum(mine))
        if self.stopped_by:
            control.should_save = control.should_training_stop = True


def _logits(outputs: Any) -> Tensor:
    logits = getattr(outputs, "logits", None)
    if logits is None:
        raise ConfigError(
            "the model's forward gives no logits, because a fused cross-entropy takes their place: switch off Liger's "
            "(use_liger_kernel=False, or fused_linear_cross_entropy and cross_entropy False in liger_kernel_config), "
            "cut cross-entropy, or what else replaces the forward."
        )
    return logits
