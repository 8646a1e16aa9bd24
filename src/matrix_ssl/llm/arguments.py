"""Settings as transformers' ``TrainingArguments``, and ``key=value`` for those that are not settings of our own."""

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch

from matrix_ssl.config import check_type, split_assignment
from matrix_ssl.errors import ConfigError, MissingExtra, did_you_mean
from matrix_ssl.llm.settings import ARGUMENTS, FineTuneSettings
from matrix_ssl.runs import devices

# arguments that a setting, an option or this package decides
_TAKEN = {
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
    "report_to": "metrics are in metrics.jsonl",
    "disable_tqdm": "there is no tqdm",
}


def training_arguments(settings: FineTuneSettings, *, output: Path, processes: int, device: torch.device) -> Any:
    """The arguments of a run; ``bf16`` is true on a CUDA device that has bfloat16, unless the settings set it.

    Raises:
        ConfigError: a name or a value is not known, or they do not go together.
        MissingExtra: transformers or accelerate is not installed.
    """
    try:
        from transformers import TrainingArguments
    except ImportError as error:
        raise MissingExtra("transformers", "llm") from error
    values = {
        **ARGUMENTS,
        "bf16": devices.choose_precision("auto", device) == "bfloat16",
        **parse_assignments(settings.arguments),
        "output_dir": str(output),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.per_process(processes),
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "use_cpu": device.type == "cpu",
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    try:
        arguments = TrainingArguments(**values)
    except ImportError as error:
        raise MissingExtra("accelerate", "llm") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"transformers refuses these training arguments: {error}") from error
    _check_weights_are_gathered(arguments)
    return arguments


def _check_weights_are_gathered(arguments: Any) -> None:
    """Refuses DeepSpeed's ZeRO-3 without the setting under which the Trainer saves the weights at all."""
    config, key = getattr(arguments, "hf_deepspeed_config", None), "stage3_gather_16bit_weights_on_model_save"
    if config is not None and config.is_zero3() and not config.is_true(f"zero_optimization.{key}"):
        raise ConfigError(
            f"under DeepSpeed's ZeRO-3 no model would be saved at the end: set {key} to true in zero_optimization. "
            f"They are saved in the precision that the model computes in."
        )


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` with the names and types of ``TrainingArguments``; dictionaries are JSON.

    Raises:
        ConfigError: a name is unknown or is decided elsewhere, or a value is not of its type.
    """
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    names = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    values = {}
    for key, text in map(split_assignment, assignments):
        if key in _TAKEN:
            raise ConfigError(f"{key}={text} cannot be set: {_TAKEN[key]}.")
        if key not in names:
            known = {*names - _TAKEN.keys(), *(field.name for field in dataclasses.fields(FineTuneSettings))}
            raise ConfigError(f"Unknown setting {key!r}.{did_you_mean(key, known)}")
        values[key] = _parse(text, hints[key], key)
    return values


def _parse(text: str, hint: Any, key: str) -> Any:
    if text.startswith("{") and any(dict in (kind, get_origin(kind)) for kind in get_args(hint)):
        return check_type(text, dict, key)
    if key == "fsdp" and text == "true":
        return True  # the library documents true, though its type says text
    return check_type(text, hint, key)
