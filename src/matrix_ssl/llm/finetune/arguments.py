"""Arguments that transformers would reject in the middle of a run, not reject at all, or know by a different name.

A run that cannot succeed ends with one sentence, before its folder is claimed.
"""

import inspect
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from matrix_ssl.errors import ConfigError

MEASURES = ("loss", "ce", "mce", "entropy", "mean_token_accuracy")  # of held-out rows, with the prefix eval_
_HIGHER_IS_BETTER = MEASURES[-1:]

# arguments decided by a setting, an option or this package
TAKEN = {
    "push_to_hub": "upload the folder model yourself, for example by hf upload",
    "hub_token": "log in with hf auth login, or set HF_TOKEN",
    "push_to_hub_token": "log in with hf auth login, or set HF_TOKEN",
    **dict.fromkeys(
        ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
        "nothing is uploaded; upload the folder model yourself, for example by hf upload",
    ),
    "output_dir": "use --out",
    "num_train_epochs": "set epochs",
    "per_device_train_batch_size": "set batch_size",
    "gradient_accumulation_steps": "set gradient_accumulation",
    "learning_rate": "it is a setting of its own",
    "seed": "it is a setting of its own",
    "data_seed": "set seed",
    "use_cpu": "use --device",
    "resume_from_checkpoint": "the same command again resumes",
    "remove_unused_columns": "all columns are used",
    "label_names": "the answers are the labels",
    "report_to": "use --logger",
    "disable_tqdm": "there is no tqdm",
    "do_train": "the command trains",
    "do_eval": "give --eval-data FILE, or set held_out=0.1",
    "do_predict": "use matrix-ssl llm generate",
    "local_rank": "torchrun sets it",
    "ddp_backend": "it is nccl on CUDA devices and gloo on CPUs",
    "ddp_timeout": "set the variable MATRIX_SSL_SILENCE_SECONDS",
}  # fmt: skip

# former names of TrainingArguments, and those of other programs
INSTEAD = {
    "evaluation_strategy": "set eval_strategy",
    "no_cuda": "use --device cpu",
    "use_mps_device": "use --device mps",
    "per_gpu_train_batch_size": "set batch_size",
    "per_gpu_eval_batch_size": "set per_device_eval_batch_size",
    "warmup_ratio": "set warmup_steps, below 1 a share of all steps",
    "group_by_length": "set train_sampling_strategy=group_by_length",
    "logging_dir": "metrics are in metrics.jsonl of the run",
    "save_safetensors": "weights are always saved in safetensors",
    "overwrite_output_dir": "use --fresh",
    "fp16_backend": "set bf16=true or fp16=true",
    "half_precision_backend": "set bf16=true or fp16=true",
    "fp16_opt_level": "set bf16=true or fp16=true",
    "adafactor": "set optim=adafactor",
    "torchdynamo": "set torch_compile_backend",
    "xpu_backend": "it is chosen by the device",
    "sharded_ddp": "set fsdp=true",
    "fsdp_min_num_params": "set fsdp_config={\"min_num_params\": N}",
    "fsdp_transformer_layer_cls_to_wrap": "set fsdp_config={\"transformer_layer_cls_to_wrap\": NAME}",
    "dispatch_batches": "set accelerator_config={\"dispatch_batches\": true}",
    "split_batches": "set accelerator_config={\"split_batches\": true}",
    "include_inputs_for_metrics": "set include_for_metrics=inputs",
    "tpu_num_cores": "run one process for each core, by torchrun",
    "tpu_metrics_debug": "set debug=tpu_metrics_debug",
    **dict.fromkeys(("jit_mode_eval", "past_index", "use_ipex", "mp_parameters", "ray_scope"),
                    "transformers has removed it; remove it here, too"),
    "lr": "set learning_rate",
    "num_epochs": "set epochs",
    "max_seq_length": "set max_length",
    "model_max_length": "set max_length",
    **dict.fromkeys(("lora_r", "lora_rank"), "set lora"),
    "load_in_8bit": "use --load-in-4bit",
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss"),
                    "answers alone are learned; set answers=all for every answer of a conversation"),
    **dict.fromkeys(("packing_strategy", "padding_free", "sample_packing", "eval_packing", "neat_packing"),
                    "set packing=true"),
}  # fmt: skip

_CAUSES_EVALUATION: dict[str, Callable[[Any], bool]] = {  # what makes no sense without held-out rows
    "eval_strategy": lambda value: value != "no",
    "eval_on_start": bool,
    "load_best_model_at_end": bool,
    "metric_for_best_model": bool,
    "save_strategy": lambda value: value == "best",
    "lr_scheduler_type": lambda value: value == "reduce_lr_on_plateau",
}
_LEVELS = ("debug", "info", "warning", "error", "critical", "detail", "passive")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("weight_decay", "max_grad_norm", "warmup_steps"), (lambda x: x >= 0, "a number of at least 0")),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (lambda x: 0 <= x < 1, "a number of at least 0 and below 1")),
    "adam_epsilon": (lambda x: x > 0, "a number above 0: weights without a gradient would become NaN"),
    "max_steps": (lambda x: x == -1 or x > 0, "at least one step, or -1 for as many as epochs need"),
    "dataloader_num_workers": (lambda x: x >= 0, "an integer of at least 0"),
    "per_device_eval_batch_size": (lambda x: x > 0, "an integer of at least 1"),
    "log_level": (lambda x: x in _LEVELS, f"one of {', '.join(_LEVELS)}"),
    "log_level_replica": (lambda x: x in _LEVELS, f"one of {', '.join(_LEVELS)}"),
}


def one_sentence(error: Exception) -> str:
    """The message of a library's error, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def check_assigned(assigned: Mapping[str, Any], *, evaluates: bool) -> None:
    """Raises ConfigError for arguments that contradict each other, or the presence or absence of held-out rows."""
    for key, needs in _CAUSES_EVALUATION.items():
        if not evaluates and assigned.get(key) and needs(assigned[key]):
            raise ConfigError(
                f"{key}={_text(assigned[key])} needs rows that are not learned: give --eval-data FILE, or set "
                f"held_out=0.1."
            )
    if not evaluates:
        return
    saves, evaluation = (_text(assigned.get(key, "")) for key in ("save_strategy", "eval_strategy"))
    if evaluation == "no":
        raise ConfigError("eval_strategy=no would not measure the held-out rows: remove it, or remove the rows.")
    if saves in ("steps", "epoch") and evaluation not in ("", saves):
        raise ConfigError(
            f"eval_strategy={evaluation} conflicts with save_strategy={saves}: every checkpoint is measured, so that "
            f"the best one can be kept; set only one of them, or both to the same value."
        )
    by_steps = saves == "steps" or (not saves and evaluation == "steps")
    saved, measured = (assigned.get(key) for key in ("save_steps", "eval_steps"))
    keeps_best = assigned.get("load_best_model_at_end", True)
    if by_steps and keeps_best and None not in (saved, measured) and saved != measured:
        raise ConfigError(
            f"save_steps={saved:g} conflicts with eval_steps={measured:g}: exactly the checkpoints are measured, so "
            f"that the best one can be kept; set only one of them, both to the same value, or "
            f"load_best_model_at_end=false."
        )
    if saves == "no" and assigned.get("load_best_model_at_end"):
        raise ConfigError("load_best_model_at_end=true needs checkpoints: remove save_strategy=no.")
    if (metric := assigned.get("metric_for_best_model")) and str(metric).removeprefix("eval_") not in MEASURES:
        raise ConfigError(f"metric_for_best_model={metric}: expected one of {', '.join(MEASURES)}.")


def evaluation_arguments(assigned: Mapping[str, Any], *, save_strategy: str, batch_size: int) -> dict[str, Any]:
    """Arguments that measure held-out rows at the start and with every checkpoint, and keep the best one."""
    strategy = assigned.get("eval_strategy") or ("epoch" if save_strategy in ("no", "best") else save_strategy)
    steps = assigned.get("eval_steps") or assigned.get("save_steps", 500)
    saves = assigned.get("save_strategy", strategy)  # a checkpoint with every measurement
    metric = str(assigned.get("metric_for_best_model") or "eval_loss")
    return {
        "eval_strategy": strategy,
        "eval_steps": steps,
        "save_strategy": saves,
        "save_steps": assigned.get("save_steps", steps),
        "eval_on_start": True,
        "per_device_eval_batch_size": batch_size,
        "load_best_model_at_end": saves != "no",
        "metric_for_best_model": metric,
        "greater_is_better": metric.removeprefix("eval_") in _HIGHER_IS_BETTER,  # the library: all but losses are
    }


def check_values(arguments: Any) -> None:
    """Raises ConfigError for values that would stop the training, or that it would misinterpret."""
    for key, (is_in_range, expected) in _RANGES.items():
        if not is_in_range(value := getattr(arguments, key) or 0):
            raise ConfigError(f"{key}={value}: expected {expected}.")
    for key in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
        if (value := getattr(arguments, key)) and not arguments.dataloader_num_workers:
            raise ConfigError(f"{key}={_text(value)} needs workers: set dataloader_num_workers=1 or more.")
    methods = multiprocessing.get_all_start_methods()
    if (method := arguments.dataloader_multiprocessing_context) and method not in methods:
        raise ConfigError(f"dataloader_multiprocessing_context={method}: expected one of {', '.join(methods)}.")


def check_batches(arguments: Any, examples: int) -> None:
    """Raises ConfigError if the data do not fill one batch and incomplete batches are dropped."""
    batch = arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and batch > examples:
        raise ConfigError(
            f"dataloader_drop_last=true leaves nothing to learn: a batch has {batch} sequences, and there are "
            f"{examples}; lower batch_size."
        )


def try_libraries(trainer: Any) -> None:
    """Makes an optimizer, a schedule and whatever else takes arguments of its own, as the training will.

    Raises:
        ConfigError: an argument is wrong.
        ValueError, ImportError, TypeError, KeyError: from the libraries, or a package is missing.
    """
    import torch
    from torch.utils.checkpoint import checkpoint
    from transformers.utils import is_liger_kernel_available

    arguments: Any = trainer.args
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("use_liger_kernel=true needs the package 'liger-kernel'; run pip install liger-kernel.")
    if (recomputing := arguments.activation_checkpointing_kwargs) and isinstance(recomputing, dict):
        known = set(inspect.signature(checkpoint).parameters) - {"function", "args", "kwargs"}
        if unknown := recomputing.keys() - known:
            raise ConfigError(
                f"activation_checkpointing_kwargs={_text(recomputing)}: {', '.join(sorted(unknown))} is not one of "
                f"{', '.join(sorted(known))}."
            )
    if arguments.torch_compile and arguments.torch_compile_mode:
        with _named("torch_compile_mode", arguments.torch_compile_mode):
            torch.compile(torch.nn.Identity(), mode=arguments.torch_compile_mode)
    if trainer.is_deepspeed_enabled:
        return  # it makes its own
    kind, options = trainer.get_optimizer_cls_and_kwargs(arguments, trainer.model)
    if not {"params", "model", "optimizer_dict"} & options.keys():
        with _named("optim", arguments.optim):
            kind([torch.nn.Parameter(torch.zeros(2, 2))], **options)
    _try_schedule(arguments)


def _try_schedule(arguments: Any) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    kind, options = arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs
    with _named("lr_scheduler_type", kind, remedy=f"; correct lr_scheduler_kwargs, which is {json.dumps(options)}"):
        schedule = get_scheduler(
            kind, optimizer=optimizer, num_warmup_steps=0, num_training_steps=2, scheduler_specific_kwargs=options
        )
        if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            optimizer.step()
            schedule.step()


def _text(value: Any) -> str:
    """A value as it is written after ``key=``."""
    return json.dumps(value) if isinstance(value, bool | dict) else str(getattr(value, "value", value))


@contextmanager
def _named(key: str, value: Any, *, remedy: str = "") -> Iterator[None]:
    """Turns a library's errors into a ConfigError that names an argument; those of missing packages name these."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise ConfigError(f"{key}={_text(value)}: {one_sentence(error).rstrip('.')}{remedy}.") from error
