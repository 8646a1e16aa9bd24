"""A fine-tuning run from data to model: prepare, claim the folder, train, write.

The folder holds ``config.json``, ``environment.json`` and ``metrics.jsonl``, as in every run; ``checkpoints/`` until
the end; ``model/`` with safetensors and tokenizer, which appears only when complete; and ``finetune.json``, written
last, which marks the run as complete.
"""

import dataclasses
import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from matrix_ssl import distributed
from matrix_ssl.errors import ConfigError, system_error
from matrix_ssl.llm.adapters import add_lora, load_adapter, read_base
from matrix_ssl.llm.data.examples import Examples, collator
from matrix_ssl.llm.data.question_files import Rows, read_rows
from matrix_ssl.llm.data.templates import check_template
from matrix_ssl.llm.finetune.arguments import check_batches, one_sentence, try_libraries
from matrix_ssl.llm.finetune.resume import newest_checkpoint, resuming, warn_of_missing_state
from matrix_ssl.llm.finetune.selection import Selection, select
from matrix_ssl.llm.finetune.settings import MODEL, RESULT, FineTuneSettings, training_arguments
from matrix_ssl.llm.finetune.trainer import MatrixTrainer, Recorder, check_trainable
from matrix_ssl.llm.models import (
    FROM_CONFIG,
    check_causal,
    check_tokens,
    context_length,
    find_model,
    open_model,
    open_tokenizer,
)
from matrix_ssl.runs import devices
from matrix_ssl.runs.digests import file_digests
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import cannot_write, read_json, temporary_folder, write_json
from matrix_ssl.runs.folder import CHECKPOINTS, ENVIRONMENT, identity
from matrix_ssl.runs.signals import Interrupted, collected

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

PACKAGES = ("transformers", "accelerate", "peft", "tokenizers", "bitsandbytes", "deepspeed")
_FEW_STEPS = 10


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs, checked and opened; nothing has been written yet."""

    settings: FineTuneSettings
    device: torch.device
    arguments: "TrainingArguments"
    rows: Rows
    selection: Selection
    tokenizer: "PreTrainedTokenizerBase"
    model: Any  # a PreTrainedModel, or one that peft has wrapped
    trainer: MatrixTrainer

    def headline(self) -> str:
        """One line on model, data, loss and device."""
        s, o, processes = self.settings, self.settings.objective, distributed.world_size()
        examples, held_out = self.selection.examples, self.selection.held_out
        loss = f"ce + {o.weight:g} mce ({o.form}, ridge {o.ridge:g})" if o.weight else "ce"
        kind = f"LoRA of {s.adapters}{' in 4 bits' if s.load_in_4bit else ''}" if s.lora else "all weights"
        steps = self.arguments.max_steps  # -1: as many as the epochs need
        length = _several(steps, "step") if steps > 0 else _several(s.epochs, "epoch")
        return (
            f"{s.model}, {kind}; {_several(len(examples), 'example')}, {examples.learned} tokens to learn"
            f"{f', {len(held_out.examples)} held out' if held_out is not None else ''}; {loss}; "
            f"{length} of batch {s.batch_size}{', packed' if s.packing else ''}, seed {s.seed}; "
            f"{devices.device_name(self.device)}, {processes} process{'es' if processes > 1 else ''}"
        )

    def counts(self) -> dict[str, int]:
        """Numbers of rows, examples and tokens."""
        return {"rows": len(self.rows.rows)} | self.selection.counts()

    def description(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        settings = dataclasses.asdict(self.settings)
        places = {"data": settings.pop("data")}
        if eval_data := settings.pop("eval_data"):
            places["eval_data"] = eval_data
        usual = {field.name: field.default for field in dataclasses.fields(FineTuneSettings)}
        # new since earlier versions
        for name in ("held_out", "answers", "lora_alpha", "lora_dropout", "lora_targets", "packing"):
            if settings[name] == usual[name]:
                del settings[name]
        held_out = self.selection.held_out
        own = {} if held_out is None or not held_out.sha256 else {"eval_data_sha256": held_out.sha256}
        return {"places": places, "settings": settings, "data_sha256": self.rows.sha256} | own

    def remarks(self) -> list[str]:
        """Sentences about what a user may not expect of the data."""
        return self.selection.remarks(max_length=self.settings.max_length)


def prepare(settings: FineTuneSettings, out: Path, *, device: torch.device) -> Prepared:
    """Reads the data, opens tokenizer and model, and checks that they match."""
    place, _ = find_model(settings.model)
    settings = settings.with_adapters_in(place)
    base = read_base(Path(place))  # below an adapter that is trained further
    processes = distributed.world_size()
    arguments = training_arguments(settings, output=out / CHECKPOINTS, processes=processes, device=device)
    rows = read_rows(settings.data)
    tokenizer = open_tokenizer(place)
    check_template(settings.template, tokenizer)
    selection = select(settings, rows, tokenizer)
    check_batches(arguments, len(selection.examples))
    if settings.lora and settings.model.startswith(FROM_CONFIG):
        raise ConfigError(
            f"lora={settings.lora} on random weights saves an adapter without its model: train the whole model first."
        )
    four_bits = device if settings.load_in_4bit else None
    model = open_model(base or place, seed=settings.seed, four_bits_on=four_bits)
    if getattr(model, "is_quantized", False) and not settings.lora:
        raise ConfigError(
            f"The weights of {settings.model} are quantized, which cannot be trained: set lora, such as lora=16, or "
            f"use the model before quantization."
        )
    for part in selection.parts:
        _check_tokens(part, model, settings)
    check_trainable(model, arguments, settings.objective)
    check_causal(model, settings.model)
    if base:
        model = load_adapter(model, Path(place), is_trainable=True)
    elif settings.lora:
        model = add_lora(model, settings.adapters, seed=settings.seed)
    trainer = _make_trainer(model, tokenizer, selection.parts, arguments, settings)
    return Prepared(settings, device, arguments, rows, selection, tokenizer, model, trainer)


def run(prepared: Prepared, out: Path, *, display: Display, loggers: Collection[str] = ()) -> dict[str, Any]:
    """Trains, or resumes after the newest checkpoint, and writes model and result.

    The main process has claimed the folder and holds its lock; it returns the content of ``finetune.json``, the others
    an empty dictionary. ``loggers``, keys of ``runs.loggers.LOGGERS``, also receive the lines of metrics. A signal
    raises Interrupted once a checkpoint is written.
    """
    started = time.monotonic()
    with distributed.together():
        newest = newest_checkpoint(out, display.say) if distributed.is_main() else None
    done, place = distributed.broadcast_object(newest)
    with collected() as received:
        with distributed.together():
            recorder = Recorder(out, after_step=done, received=received, display=display, loggers=loggers)
        trainer = prepared.trainer
        trainer.add_callback(recorder)
        if done:
            display.say(f"Resuming after step {done}.")
            trainer.args.eval_on_start = False  # the run was already evaluated at its start
            warn_of_missing_state(Path(str(place)), display)
        finished = False
        try:
            with resuming(place, recorder):
                trainer.train(resume_from_checkpoint=place)
            if not recorder.stopped_by and distributed.broadcast_object(_is_unmeasured(trainer, recorder)):
                trainer.evaluate()
            finished = not recorder.stopped_by
        finally:
            recorder.close(finished=finished)
    if recorder.stopped_by:
        raise Interrupted(recorder.stopped_by, after=f" after a checkpoint at step {trainer.state.global_step}")
    _save_model(trainer, out)
    if not distributed.is_main():
        return {}
    parameters = list(prepared.model.parameters())
    result: dict[str, Any] = {
        "finished": True,
        "steps": trainer.state.global_step,
        "losses": {"first": recorder.lines[0], "last": recorder.lines[-1]} if recorder.lines else {},
        **({"held_out": _held_out(trainer, recorder)} if recorder.evaluations else {}),
        "counts": prepared.counts(),
        "parameters": _count(parameters),
        "parameters_trained": _count(p for p in parameters if p.requires_grad),
        "seconds_since_last_start": time.monotonic() - started,
        **prepared.description(),
        "run": identity(out),
        "files": file_digests(out / MODEL),
        "environment": read_json(out / ENVIRONMENT),
    }
    for sentence in _what_was_learnt(result, prepared.settings):
        display.say(sentence)
    write_json(out / RESULT, result)  # last: it marks the run as complete
    remove_checkpoints(out)
    return result


def remove_checkpoints(out: Path) -> None:
    """Removes the checkpoints, several times as large as the model, of a complete run, even one killed meanwhile."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def _several(number: float, what: str) -> str:
    """A number and its noun, which has a plural s unless the number is 1."""
    shown = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{shown} {what}{'s' * (number != 1)}"


def _is_unmeasured(trainer: MatrixTrainer, recorder: Recorder) -> bool:
    """Whether the model that is kept has not been measured on held-out rows, as after an ``eval_delay`` too long."""
    evaluations, state = recorder.evaluations, trainer.state
    if not evaluations or (trainer.args.load_best_model_at_end and state.best_model_checkpoint):
        return False
    return int(evaluations[-1]["step"]) < state.global_step


def _held_out(trainer: MatrixTrainer, recorder: Recorder) -> dict[str, Any]:
    """The measures of held-out rows at the start, and of the model that is kept."""
    kept = recorder.evaluations[-1]
    if trainer.args.load_best_model_at_end and (loaded := trainer.state.best_model_checkpoint):
        kept = next(line for line in recorder.evaluations if loaded.endswith(f"-{line['step']}"))
    return {"first": recorder.evaluations[0], "kept": kept}


def _what_was_learnt(result: dict[str, Any], settings: FineTuneSettings) -> list[str]:
    """Sentences for the end of a run."""
    sentences, steps = [], result["steps"]
    if losses := result["losses"]:
        first, last = losses["first"], losses["last"]
        text = f"Loss {first['loss']:.3g} at step {first['step']}"
        if last is not first:
            text += f", {last['loss']:.3g} at step {last['step']}"
        if held_out := result.get("held_out"):
            first, kept = held_out["first"], held_out["kept"]
            text += f"; held out {first['eval_loss']:.3g} at step {first['step']}, {kept['eval_loss']:.3g} at step "
            text += f"{kept['step']}, the model that is kept"
        sentences.append(f"{text}.")
    if steps <= _FEW_STEPS:
        remedy = f"raise epochs ({settings.epochs:g})"
        if any(assignment.startswith("max_steps=") for assignment in settings.arguments):
            remedy = "raise max_steps"
        sentences.append(
            f"The training had only {_several(steps, 'step')}: with few data, lower batch_size (it is "
            f"{settings.batch_size}) or {remedy}."
        )
    return sentences


def _make_trainer(
    model: Any, tokenizer: "PreTrainedTokenizerBase", data: Sequence[Examples],
    arguments: "TrainingArguments", settings: FineTuneSettings,
) -> MatrixTrainer:  # fmt: skip
    """The trainer, which must not write yet; what its library would reject in the middle of a run is rejected here."""
    from transformers import PrinterCallback

    output = arguments.output_dir
    try:
        with temporary_folder() as folder:
            arguments.output_dir = str(folder)  # the library creates it immediately
            trainer = MatrixTrainer(
                model=model, args=arguments, train_dataset=data[0], eval_dataset=data[1] if len(data) > 1 else None,
                data_collator=collator(tokenizer), processing_class=tokenizer, matrix=settings.objective,
                packing=settings.packing,
            )  # fmt: skip
        try_libraries(trainer)
    except (ValueError, ImportError, TypeError, KeyError) as error:
        raise ConfigError(f"transformers rejects this training: {one_sentence(error)}") from error
    finally:
        arguments.output_dir = output
    trainer.remove_callback(PrinterCallback)
    return trainer


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Number of elements, including those of parameters sharded by ZeRO-3 or packed two to a byte."""
    return sum(p.quant_state.shape.numel() if hasattr(p, "quant_state") else getattr(p, "ds_numel", p.numel())
               for p in parameters)  # fmt: skip


def _save_model(trainer: MatrixTrainer, out: Path) -> None:
    """Writes ``model/`` under a temporary name and renames it; all processes must call this."""
    if trainer.is_fsdp_enabled:  # checkpoints may be sharded, the result is not
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    temporary = out / f".{MODEL}.tmp"
    if distributed.is_main():
        shutil.rmtree(temporary, ignore_errors=True)
    distributed.barrier()
    try:
        trainer.save_model(str(temporary))
    except Exception as error:  # libraries report a full disk by errors of their own
        if (refused := system_error(error)) is None:
            raise
        raise cannot_write(out / MODEL, refused) from error
    distributed.barrier()
    if distributed.is_main():
        (temporary / "training_args.bin").unlink(missing_ok=True)  # pickled, and in config.json anyway
        shutil.rmtree(out / MODEL, ignore_errors=True)
        temporary.rename(out / MODEL)


def _check_tokens(examples: Examples, model: "PreTrainedModel", settings: FineTuneSettings) -> None:
    check_tokens(model, int(examples.tokens.max()), settings.model)
    longest = int(examples.starts.diff().max())
    positions = context_length(model)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"A sequence has {longest} tokens, but {settings.model} has {positions} positions: set "
            f"max_length={positions}."
        )
