"""Settings as transformers' ``TrainingArguments``, and ``key=value`` for those that have no option of their own."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from matrix_ssl.config import check_type
from matrix_ssl.errors import ConfigError, MissingExtra, did_you_mean
from matrix_ssl.llm.settings import ARGUMENTS, FineTuneSettings
from matrix_ssl.runs import devices

# what options decide, or the package itself
_TAKEN = {
    "output_dir": "--out",
    "num_train_epochs": "--epochs",
    "per_device_train_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--gradient-accumulation",
    "learning_rate": "--learning-rate",
    "seed": "--seed",
    "data_seed": "--seed",
    "use_cpu": "--device",
    "resume_from_checkpoint": "the same command again",
    "remove_unused_columns": "nothing: all columns are used",
    "report_to": "metrics.jsonl",
    "disable_tqdm": "nothing: there is no tqdm",
}


def training_arguments(settings: FineTuneSettings, *, output: Path, processes: int, device: torch.device) -> Any:
    """The arguments of a run. On a CUDA device that has bfloat16, ``bf16`` is true unless ``--set`` says otherwise.

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
        ConfigError: a name is unknown or has its own option, or a value is not of its type.
    """
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    names = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    values = {}
    for assignment in assignments:
        key, separator, text = (part.strip() for part in assignment.partition("="))
        if not separator or not key:
            raise ConfigError(f"--set {assignment!r}: write key=value, for example weight_decay=0.1.")
        if key in _TAKEN:
            raise ConfigError(f"--set {key}={text}: this is decided by {_TAKEN[key]}.")
        if key not in names:
            raise ConfigError(
                f"--set {key}={text}: unknown argument {key!r}.{did_you_mean(key, names - _TAKEN.keys())}"
            )
        values[key] = _parse(text, hints[key], key)
    return values


def _parse(text: str, hint: Any, key: str) -> Any:
    kinds = get_args(hint) or (hint,)
    if text.startswith("{") and any(kind is dict or getattr(kind, "__origin__", None) is dict for kind in kinds):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{key}={text}: not JSON: {error}.") from error
    if key == "fsdp" and text == "true":
        return True  # the library documents true, though its type says text
    return check_type(text, hint, key)
