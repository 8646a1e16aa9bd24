"""The settings of a fine-tuning run, and transformers' ``TrainingArguments`` made from them.

The defaults are those that MetaMath publishes for models of 7B parameters. Yu et al., "MetaMath: Bootstrap Your Own
Mathematical Questions for Large Language Models", ICLR 2024; README and run.sh of its repository: batch size 128,
learning rate 2e-5, 3 epochs, at most 2048 tokens, cosine schedule with 3 % warm-up, no weight decay.
"""

import dataclasses
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Le, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from matrix_ssl.config import check_type, override, split_assignment
from matrix_ssl.config.validation import settings
from matrix_ssl.errors import ConfigError, MissingExtra, did_you_mean, import_extra
from matrix_ssl.llm.adapters import Adapters, holds_adapter, read_adapters
from matrix_ssl.llm.data.templates import TemplateName
from matrix_ssl.llm.finetune import arguments
from matrix_ssl.llm.objective import DEFAULTS, Objective
from matrix_ssl.runs.terminal import redact

if TYPE_CHECKING:
    import torch

RESULT, MODEL = "finetune.json", "model"  # file and folder of a run

# TrainingArguments that differ from the defaults of transformers
_ARGUMENTS: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # below 1: a fraction of all steps
    "weight_decay": 0.0,
    "logging_steps": 1,
    "save_strategy": "epoch",
    "save_total_limit": 2,  # the newest, and the one before in case the newest is damaged
}


@settings
class FineTuneSettings:
    """A model, the data it learns, the loss, and how it is trained."""

    model: str  # run, folder, also of an adapter, name on the hub, or config: and a configuration
    data: str  # file, or hf: and a name, configuration and split
    template: TemplateName
    eval_data: str = ""  # the same, for held-out questions and answers; empty: none
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.0  # share of the rows of ``data`` to measure, not learn
    columns: tuple[str, ...] = ()  # with questions and answers, or with messages; empty: those with the usual names
    answers: Literal["last", "all"] = "last"  # which of a conversation are learned; all: each is an example of its own
    objective: Objective = DEFAULTS
    lora: NonNegativeInt = 0  # rank of adapters on all linear layers except the head; 0: all weights are trained
    lora_alpha: NonNegativeFloat = 0.0  # the adapters' scale is this over their rank; 0: twice the rank
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0  # share of an adapter's inputs that are dropped in training
    lora_targets: tuple[str, ...] = ()  # names of the layers with adapters; empty: all linear layers except the head
    load_in_4bit: bool = False  # hold the linear layers below the adapters in four bits
    epochs: PositiveFloat = 3.0  # passes over the data
    batch_size: PositiveInt = 128  # sequences per step, over all processes and micro-batches
    gradient_accumulation: PositiveInt = 1  # micro-batches per step
    learning_rate: NonNegativeFloat = 2e-5  # peak
    max_length: Annotated[int, Ge(2)] = 2048  # tokens per sequence; longer ones are truncated
    packing: bool = False  # compute several sequences in one row instead of padding them; changes results by rounding
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0  # for the order of the data, adapters and random weights
    arguments: tuple[str, ...] = ()  # key=value, for transformers' TrainingArguments

    def __post_init__(self) -> None:
        """Raises ConfigError for two sources of held-out rows."""
        if self.eval_data and self.held_out:
            raise ConfigError(
                f"held_out={self.held_out} conflicts with --eval-data {self.eval_data}: remove one of them."
            )

    def override(self, assignments: Iterable[str]) -> "FineTuneSettings":
        """Applies ``key=value``; a key that is not a setting is kept for TrainingArguments, which check it."""
        names = {field.name for field in dataclasses.fields(self)} - {"arguments"}
        own: list[str] = []
        others = list(self.arguments)
        for assignment in assignments:
            (own if split_assignment(assignment)[0].partition(".")[0] in names else others).append(assignment)
        return dataclasses.replace(override(self, own), arguments=tuple(others))

    @property
    def adapters(self) -> Adapters:
        """The adapters to train; of rank 0 if all weights are trained."""
        return Adapters(self.lora, self.lora_alpha or 2.0 * self.lora, self.lora_dropout, self.lora_targets)

    def with_adapters_in(self, place: str) -> "FineTuneSettings":
        """The settings with rank, scale, dropout and layers of the adapters in the folder of the model, if it has any.

        Args:
            place: the folder, or what else ``model`` stands for.

        Raises:
            ConfigError: a setting differs from them, or is of adapters where there are none.
        """
        if holds_adapter(folder := Path(place)):
            found = read_adapters(folder)
            stored: dict[str, Any] = {"lora": found.rank, "lora_alpha": found.alpha}
            stored |= {"lora_dropout": found.dropout, "lora_targets": found.targets}
            for name, value in stored.items():
                given = getattr(self, name)
                given = tuple(sorted(given)) if isinstance(given, tuple) else given
                if given and given != value:
                    text = ",".join(found.targets) if name == "lora_targets" else f"{value:g}"
                    raise ConfigError(
                        f"{name} differs from that of the adapter in {folder}, which is {text}: remove the setting, or "
                        f"merge the adapter into its model first and train a new one."
                    )
            return dataclasses.replace(self, **stored)
        for name in ("lora_alpha", "lora_dropout", "lora_targets"):
            if getattr(self, name) and not self.lora:
                raise ConfigError(f"{name} is of adapters, and there are none: set their rank, for example lora=16.")
        if self.load_in_4bit and not self.lora:
            raise ConfigError(
                "load_in_4bit needs adapters, as weights in four bits cannot be trained: set lora, for example lora=16."
            )
        return self

    @property
    def evaluates(self) -> bool:
        """Whether held-out rows are measured."""
        return bool(self.eval_data or self.held_out)

    def per_process(self, processes: int) -> int:
        """Sequences per micro-batch of one process."""
        parts = processes * self.gradient_accumulation
        if self.batch_size % parts:
            times = f"{processes} processes times " if processes > 1 else ""
            raise ConfigError(
                f"batch_size={self.batch_size} is not divisible by {times}"
                f"gradient_accumulation={self.gradient_accumulation}."
            )
        return self.batch_size // parts


def training_arguments(settings: FineTuneSettings, *, output: Path, processes: int, device: "torch.device") -> Any:
    """The arguments of a run; ``bf16`` is true on a CUDA device that supports it, unless the settings set it."""
    from matrix_ssl.runs import devices

    transformers = import_extra("transformers", extra="llm")
    assigned = parse_assignments(settings.arguments)
    arguments.check_assigned(assigned, evaluates=settings.evaluates)
    strategy, batch = assigned.get("save_strategy", _ARGUMENTS["save_strategy"]), settings.per_process(processes)
    evaluation = arguments.evaluation_arguments(assigned, save_strategy=strategy, batch_size=batch)
    values = {
        **_ARGUMENTS,
        "bf16": device.type == "cuda" and devices.has_bfloat16(device),
        **(evaluation if settings.evaluates else {}),
        **assigned,
        "output_dir": str(output),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "use_cpu": device.type == "cpu",
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    try:
        result = transformers.TrainingArguments(**values)
    except ImportError as error:
        if importlib.util.find_spec("accelerate") is None:
            raise MissingExtra("accelerate", "llm") from error
        raise _refused(values, error) from error
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise _refused(values, error) from error
    arguments.check_values(result)
    config, key = getattr(result, "hf_deepspeed_config", None), "stage3_gather_16bit_weights_on_model_save"
    if config is not None and config.is_zero3() and not config.is_true(f"zero_optimization.{key}"):
        raise ConfigError(
            f"Under DeepSpeed's ZeRO-3 no model would be saved at the end: set {key} to true in zero_optimization. "
            f"They are saved in the precision that the model computes in."
        )
    return result


def _refused(values: dict[str, Any], error: Exception) -> ConfigError:
    """The error for arguments that transformers rejects; if one of them needs a missing library, it names that."""
    if values.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        return ConfigError("deepspeed: the package 'deepspeed' is not installed; run pip install deepspeed.")
    return ConfigError(f"transformers rejects these training arguments: {arguments.one_sentence(error)}")


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``key=value`` with the names and types of ``TrainingArguments``; dictionaries are JSON."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    names = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    values = {}
    for key, text in map(split_assignment, assignments):
        if key in arguments.TAKEN:
            raise ConfigError(redact(f"{key}={text} cannot be set: {arguments.TAKEN[key]}."))
        if key not in names and key in arguments.INSTEAD:
            raise ConfigError(f"Unknown setting {key!r}: {arguments.INSTEAD[key]}.")
        if key not in names:
            own = {field.name for field in dataclasses.fields(FineTuneSettings)} - {"arguments"}
            close = did_you_mean(key, {*names - arguments.TAKEN.keys(), *own})
            listed = f" Known: {', '.join(sorted(own))}, and the arguments of transformers' TrainingArguments."
            raise ConfigError(f"Unknown setting {key!r}.{close if 'Did you mean' in close else listed}")
        values[key] = _parse(text, hints[key], key)
    return values


def _parse(text: str, hint: Any, key: str) -> Any:
    if text.startswith("{") and any(dict in (kind, get_origin(kind)) for kind in get_args(hint)):
        return check_type(text, dict, key)
    if key == "fsdp" and text == "true":
        return True  # the library documents true, though its type says text
    return check_type(text, hint, key)
