"""The settings of a fine-tuning. The defaults are those that MetaMath publishes for models of 7B parameters.

Yu et al., "MetaMath: Bootstrap Your Own Mathematical Questions for Large Language Models", ICLR 2024; README and run.sh
of its repository: batch 128, learning rate 2e-5, 3 epochs, at most 2048 tokens, cosine with 3 % warm-up, no decay of
weights.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from matrix_ssl.errors import ConfigError
from matrix_ssl.llm.data.templates import TemplateName
from matrix_ssl.llm.objective import DEFAULTS, Objective

RESULT, MODEL = "finetune.json", "model"  # file and folder of a run

# what is passed to transformers' TrainingArguments where nothing else is asked for
ARGUMENTS: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # a part of all steps, as everything below 1
    "weight_decay": 0.0,
    "logging_steps": 1,
    "save_strategy": "epoch",
    "save_total_limit": 1,
}


@dataclass(frozen=True)
class FineTuneSettings:
    """A model, what it learns, by which loss and how."""

    model: str  # folder, name of the hub, or config: and a configuration
    data: str  # file, or hf: and a name
    template: TemplateName
    columns: tuple[str, ...] = ()  # with questions and answers, or with messages; none: those that are found
    objective: Objective = DEFAULTS  # weight 0 is the cross-entropy alone
    lora: int = 0  # rank of adapters; 0: the whole model is trained
    load_in_4bit: bool = False  # below adapters, the linear layers in four bits
    epochs: float = 3.0
    batch_size: int = 128  # sequences of a step, of all processes and micro-batches together
    gradient_accumulation: int = 1  # micro-batches of a step
    learning_rate: float = 2e-5  # at its peak
    max_length: int = 2048  # tokens of a sequence
    seed: int = 0
    arguments: tuple[str, ...] = ()  # key=value, of transformers' TrainingArguments

    def per_process(self, processes: int) -> int:
        """Sequences of a micro-batch of one process.

        Raises:
            ConfigError: the batch does not divide.
        """
        parts = processes * self.gradient_accumulation
        if self.batch_size % parts:
            raise ConfigError(
                f"batch_size={self.batch_size} does not divide by {processes} processes times "
                f"gradient_accumulation={self.gradient_accumulation}."
            )
        return self.batch_size // parts


def check_settings(settings: FineTuneSettings) -> None:
    """Raises ConfigError for a number outside the range in which it means something, and for bits without adapters."""
    ranges: dict[str, tuple[float, float]] = {
        "lora": (0, math.inf),
        "epochs": (0, math.inf),
        "batch_size": (1, math.inf),
        "gradient_accumulation": (1, math.inf),
        "learning_rate": (0, math.inf),
        "max_length": (2, math.inf),
        "seed": (0, 2**32 - 1),
    }
    for key, (low, high) in ranges.items():
        value = getattr(settings, key)
        if not (low <= value <= high and math.isfinite(value)) or (key == "epochs" and value == 0):
            raise ConfigError(f"{key}={value}: expected a number from {low:g} on, and above 0 for epochs.")
    if settings.load_in_4bit and not settings.lora:
        raise ConfigError("load_in_4bit without lora: weights in four bits cannot be trained, give a rank of adapters.")


def to_dict(settings: FineTuneSettings) -> dict[str, Any]:
    """The settings as JSON has them."""
    return {**dataclasses.asdict(settings), "objective": settings.objective._asdict()}
