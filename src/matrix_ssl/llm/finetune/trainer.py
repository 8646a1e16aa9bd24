"""transformers' ``Trainer`` with cross-entropy plus matrix cross-entropy, and the callback that records a run.

If the model's head is a single product up to bias, scale and cap, which ``fused_head`` verifies on the first batch, the
loss is computed from the hidden states and the head, and the logits are never materialised. Otherwise it is computed
from the logits of the model's forward, and the log says why. Sums are divided by ``num_items_in_batch``, the number of
labels in a step, and multiplied by the number of processes because DistributedDataParallel averages gradients, just as
``Trainer`` does for the model's own loss. With ``weight=0``, training is therefore that of ``Trainer``, up to rounding.
"""

import logging
import math
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl import distributed
from matrix_ssl.errors import ConfigError, DataError, MissingExtra, TrainingError
from matrix_ssl.llm.finetune.fused_head import HeadForm, ending_in, find_form
from matrix_ssl.llm.finetune.packing import check_packing, pack
from matrix_ssl.llm.head import head_rows, head_shape, tokens_without_row
from matrix_ssl.llm.loss.loss import (
    MatrixCrossEntropyTerms,
    matrix_cross_entropy_terms,
    matrix_cross_entropy_terms_from_logits,
)
from matrix_ssl.llm.objective import DEFAULTS, Objective, check_objective
from matrix_ssl.runs.digests import write_digests
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.metrics import MetricsWriter

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise MissingExtra("transformers", "llm", cause=error) from error

_SECONDS_BETWEEN_LINES = 10.0
_MEASURES = ("ce", "mce", "entropy", "mean_token_accuracy")  # in a line of the log; the last two have trl's names
_KEYS = ("loss", *_MEASURES, "grad_norm", "learning_rate", "epoch")
_IGNORED = -100
_log = logging.getLogger(__name__)


def check_trainable(model: Any, arguments: Any, matrix: Objective) -> None:
    """Checks that a model can be trained with the loss, under ``TrainingArguments``."""
    vocabulary, d = head_shape(model)
    check_objective(matrix, vocabulary=vocabulary, d=d)
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

    It trains whole models and those wrapped by peft. Each line of the log has ``ce`` and ``mce``, in nats, and trl's
    ``entropy``, in nats, and ``mean_token_accuracy``. They are means over the tokens of all micro-batches and processes
    of a step, and over the steps since the last line, so that ``loss = ce + matrix.weight · mce`` in every line;
    ``num_tokens`` counts the tokens seen so far. An evaluation reports the measures as means over all its tokens, with
    the prefix ``eval_``. With ``packing``, the forward receives the examples of each batch in fewer rows, each example
    by itself; see ``matrix_ssl.llm.finetune.packing``.

    Reference: Zhang et al., ICML 2024; an interpretation, see ``matrix_ssl.llm.loss.loss``.
    """

    # the library's parameters change from release to release: all are passed on
    def __init__(self, *args: Any, matrix: Objective = DEFAULTS, packing: bool = False, **kwargs: Any):
        """Takes the arguments of ``transformers.Trainer``, the constants of the loss, and whether batches are packed.

        Raises:
            ConfigError: the model has no suitable head, a constant of the loss is out of range, an argument is not
                supported by the loss, or packed examples would not be independent of each other.
        """
        super().__init__(*args, **kwargs)
        check_trainable(self.model, self.args, matrix)
        _keep_four_bits(self.model)
        if packing:
            check_packing(self.model)
        self._packs = packing
        if self.compute_loss_func is not None:
            raise ConfigError("compute_loss_func would replace this loss: remove it.")
        self.matrix = matrix
        self.model_accepts_loss_kwargs = True  # labels are counted whatever the model's forward takes,
        self._loss_shifts_labels = True  # all but the first of each sequence, which nothing predicts
        tokenizer: Any = self.processing_class
        self._may_lack_rows = hasattr(tokenizer, "get_vocab") and tokens_without_row(self.model, tokenizer) > 0
        self._form: HeadForm | None = None  # of the head, if the logits are left out
        self._is_form_known = self._needs_logits = False
        self._sums: Tensor | None = None  # (4,), sums of the measures since the step below
        self._since = 0
        self._tokens: Tensor | None = None  # (), seen by this process
        self._evaluated: list[Tensor] = []  # (5,) per batch, sums of the measures and the number of tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:  # fmt: skip
        """The sum over the tokens of this micro-batch divided by ``num_items_in_batch``, or, without it, the mean.

        Raises:
            ConfigError: the forward returns no logits, or it returns an auxiliary loss of experts.
            DataError: labels are missing, already shifted, or beyond the rows of the head; or a batch to pack has no
                mask.
            NotFiniteError: the cross-entropy is NaN or infinite; detected here on the CPU, elsewhere in the log.
        """
        labels = inputs.get("labels")
        if labels is None or "shift_labels" in inputs:
            what = "no labels" if labels is None else "shift_labels, as for context or sequence parallelism"
            raise DataError(f"A batch has {what}: the loss needs one label for each position, unshifted.")
        if self._may_lack_rows:
            self._check_rows(labels)
        count = labels[:, 1:].ne(_IGNORED).sum()
        items = count if num_items_in_batch is None else num_items_in_batch
        given = {key: value for key, value in inputs.items() if key != "labels"}
        rest, labels = pack(given, labels) if self._packs and not self._needs_logits else (given, labels)
        if not self._is_form_known:
            self._find_form(model, rest)
        if self._form is not None and not self._needs_logits:
            terms, outputs = self._from_hidden(model, rest, labels, items)
        else:
            outputs = model(**rest)
            logits = _logits(outputs)
            terms = matrix_cross_entropy_terms_from_logits(
                logits, head_rows(self.model), _extended(labels, logits.shape[1]),
                objective=self.matrix, num_items_in_batch=items,
            )  # fmt: skip
        if getattr(outputs, "aux_loss", None) is not None:
            raise ConfigError(
                "The model returns an auxiliary loss of its experts, which this loss ignores: set "
                "output_router_logits=False in its configuration."
            )
        scale = 1
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            scale = self.accelerator.num_processes // self.get_tp_size()  # processes that share a batch count once
        self._note(torch.stack(terms[1:]), scale=scale, items=items, count=count, inputs=given)
        loss = terms.loss * scale
        return (loss, outputs) if return_outputs else loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in the library, which would take one more step after resuming from a checkpoint of the last one."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Whether to save under ``save_strategy=best``: also if a stop has requested a checkpoint."""
        return bool(super()._determine_best_metric(*args, **kwargs)) or self.control.should_save

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As in the library; the logits are computed only if more than the loss is requested."""
        self._needs_logits = not prediction_loss_only
        if inputs.get("labels") is not None:
            inputs = {**inputs, "labels": self._without_repeats(inputs["labels"])}
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._needs_logits = False

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in the library, whose loss is a mean over batches, but with measures and loss as means over tokens."""
        self._evaluated = []
        output: Any = super().evaluation_loop(*args, **kwargs)
        if self._evaluated:
            *sums, count = self.accelerator.gather(torch.stack(self._evaluated).sum(0).unsqueeze(0)).sum(0).tolist()
            if count:
                means = dict(zip(_MEASURES, (x / count for x in sums), strict=True))
                means["loss"] = means["ce"] + self.matrix.weight * means["mce"]
                prefix = kwargs.get("metric_key_prefix", "eval")
                output.metrics.update({f"{prefix}_{name}": mean for name, mean in means.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the measures to a line of the log; raises TrainingError if the training's ``ce`` is NaN or infinite."""
        if "loss" in logs and self._sums is not None:
            steps = self.state.global_step - self._since
            means = (self.accelerator.gather(self._sums.unsqueeze(0)).mean(0) / steps).tolist()
            logs.update(zip(_MEASURES, means, strict=True))
            if self._tokens is not None:
                logs["num_tokens"] = int(self.accelerator.gather(self._tokens.unsqueeze(0)).sum())
            if not math.isfinite(logs["ce"]):
                raise TrainingError(
                    f"The cross-entropy of steps {self._since + 1} to {self.state.global_step} is {logs['ce']}: lower "
                    f"the learning rate, or use bfloat16 instead of float16, and resume from the last checkpoint."
                )
            self._sums = None
        super().log(logs, start_time)

    def _without_repeats(self, labels: Tensor) -> Tensor:
        """The labels, ignoring those of rows that repeat others to fill the last batch of an evaluation."""
        state, place = self.accelerator.gradient_state, self.accelerator.process_index // self.get_tp_size()
        if not state.end_of_dataloader or state.remainder <= 0:
            return labels
        rows = torch.arange(len(labels), device=labels.device) + place * len(labels)
        return labels.masked_fill((rows >= state.remainder).unsqueeze(1), _IGNORED)

    def _from_hidden(
        self, model: Any, inputs: dict[str, Any], labels: Tensor, items: int | Tensor
    ) -> tuple[MatrixCrossEntropyTerms, Any]:
        """The terms, computed without logits, and the model's outputs, which have no logits either."""
        assert self._form is not None
        form, results = self._form, []

        def compute(hidden: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
            terms = matrix_cross_entropy_terms(
                hidden, rows, _extended(labels, hidden.shape[1]).to(hidden.device), objective=self.matrix, bias=bias,
                logit_scale=form.scale, softcap=form.softcap, num_items_in_batch=items,
            )  # fmt: skip
            results.append(terms)
            return terms.loss

        with ending_in(self.model, compute):
            outputs = model(**inputs)
        (terms,) = results
        return terms._replace(loss=outputs.loss), outputs

    def _find_form(self, model: Any, inputs: dict[str, Any]) -> None:
        self._is_form_known = True
        if self.args.torch_compile:
            reason = "torch.compile traces its forward"
        else:
            self._form, reason = find_form(self.model, model, inputs)
        if self._form is None and self.is_world_process_zero():
            _log.warning("The loss is computed from whole logits of %s: %s.", type(self.model).__name__, reason)

    def _check_rows(self, labels: Tensor) -> None:
        tokenizer: Any = self.processing_class
        vocabulary, _ = head_shape(self.model)
        if (largest := int(labels.max())) >= vocabulary:
            raise DataError(
                f"The largest label is {largest}, but the head has {vocabulary} rows: pass the tokenizer that belongs "
                f"to the model, or call model.resize_token_embeddings({len(tokenizer)}) first."
            )

    def _note(
        self, measures: Tensor, *, scale: int, items: int | Tensor, count: Tensor, inputs: dict[str, Any]
    ) -> None:
        """Keeps the measures of a micro-batch, which are sums divided by ``items``, until the next line."""
        assert self.model is not None
        if not self.model.training:
            self._evaluated.append(torch.cat([measures * items, count.to(measures.device, measures.dtype).view(1)]))
            return
        if self._sums is None:
            self._sums, self._since = torch.zeros_like(measures), self.state.global_step
        self._sums += measures * scale
        tokens = _tokens_seen(inputs).to(measures.device)
        self._tokens = tokens if self._tokens is None else self._tokens + tokens


class Recorder(TrainerCallback):
    """Appends to ``metrics.jsonl``, and stops the training after a checkpoint if any process received a signal."""

    def __init__(
        self, run: Path, *, after_step: int, received: list[int], display: Display, loggers: Collection[str] = ()
    ):
        """Drops the lines after ``after_step``; ``received`` collects signal numbers, ``loggers`` get all lines."""
        self._run = run
        self.stopped_by = 0  # signal number, 0 for none
        self.has_begun = False  # a step, so the whole checkpoint has been read
        self._writer = None
        if distributed.is_main():
            self._writer = MetricsWriter(run, after_step=after_step, loggers=loggers, say=display.say)
        self._lines = list(self._writer.lines) if self._writer is not None else []
        self._received, self._display, self._last_line = received, display, 0.0

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of training metrics; empty except on the main process."""
        return [line for line in self._lines if "loss" in line]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """All lines of held-out metrics; empty except on the main process."""
        return [line for line in self._lines if "eval_loss" in line]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """Writes a line of held-out metrics."""
        if self._writer is None:
            return
        names = [f"eval_{key}" for key in ("loss", *_MEASURES)]
        self._write({"step": state.global_step, **{key: metrics[key] for key in names if key in metrics}})
        text = "  ".join(f"{key} {metrics[f'eval_{key}']:.4g}" for key in ("loss", "ce") if f"eval_{key}" in metrics)
        self._display.say(f"step {state.global_step}/{state.max_steps}  held out: {text}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Writes a line of training metrics."""
        if self._writer is None or "loss" not in logs:
            return
        self._write({"step": state.global_step, **{key: logs[key] for key in _KEYS if key in logs}})
        if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or state.global_step == state.max_steps:
            self._last_line = time.monotonic()
            text = "  ".join(f"{key} {logs[key]:.4g}" for key in ("loss", "ce", "mce"))
            self._display.say(f"step {state.global_step}/{state.max_steps}  {text}")

    def _write(self, line: dict[str, Any]) -> None:
        if self._writer is not None:
            self._lines.append(self._writer.write(line))

    def close(self, *, finished: bool) -> None:
        """Closes the loggers; ``finished`` is false if the training stopped before its last step."""
        if self._writer is not None:
            self._writer.close(finished=finished)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes the digests of a checkpoint's files once all processes have written theirs."""
        distributed.barrier()
        if self._writer is not None:
            write_digests(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._run)
        distributed.barrier()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Finds the best checkpoint again if the run was moved, where the library would keep the last model instead."""
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notes that the training has begun."""
        self.has_begun = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agrees with the other processes on whether to stop, after a checkpoint of this step or of the whole epoch."""
        mine = torch.tensor(self._received[0] if self._received else 0, device=args.device)
        self.stopped_by = int(distributed.maximum(mine))
        if self.stopped_by:
            control.should_training_stop = True
            control.should_save |= not _ends_epoch(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """If a signal stops the training: saves once a whole epoch is measured, and never measures part of one."""
        if self.stopped_by:
            control.should_save = _ends_epoch(state)
            control.should_evaluate &= _ends_epoch(state)


def _ends_epoch(state: Any) -> bool:
    """Whether a step is the last of its epoch, or of the training."""
    return bool(state.epoch.is_integer() or state.global_step >= state.max_steps)


def _keep_four_bits(model: Any) -> None:
    """Keeps weights in four bits as they are in evaluations.

    On CPUs with AVX512-BF16, bitsandbytes would turn them into a format for inference, through which no gradient flows
    in the steps that follow.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _tokens_seen(inputs: dict[str, Any]) -> Tensor:
    """The number of tokens in a batch without padding, as trl counts them: (), 0 if it has none of the usual keys."""
    mask = inputs.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        total: Tensor = mask.sum()
        return total
    shapes = (inputs[key].shape for key in ("input_ids", "inputs_embeds") if inputs.get(key) is not None)
    batch, length, *_ = next(shapes, (0, 0))
    return torch.tensor(batch * length)


def _extended(labels: Tensor, length: int) -> Tensor:
    """Labels for ``length`` positions: prompt tuning prepends virtual tokens, which are not learned, to a sequence."""
    return F.pad(labels, (length - labels.shape[1], 0), value=_IGNORED) if length > labels.shape[1] else labels


def _logits(outputs: Any) -> Tensor:
    if (logits := getattr(outputs, "logits", None)) is None:
        raise ConfigError(
            "The model's forward returns no logits because a fused cross-entropy replaces them: switch off Liger's "
            "(use_liger_kernel=False, or fused_linear_cross_entropy and cross_entropy False in liger_kernel_config), "
            "cut cross-entropy, or any other replacement of the forward."
        )
    return logits
