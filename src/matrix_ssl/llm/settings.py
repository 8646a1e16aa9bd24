"""The settings of a fine-tuning. The defaults are those that MetaMath publishes for models of 7B parameters.

Yu et al., "MetaMath: Bootstrap Your Own Mathematical Questions for Large Language Models", ICLR 2024; README and run.sh
of its repository: batch 128, learning rate 2e-5, 3 epochs, at most 2048 tokens, cosine with 3 % warm-up, no decay of
weights.
"""

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from matrix_ssl.config import override, settings, split_assignment
from matrix_ssl.errors import ConfigError
from matrix_ssl.llm.data.templates import TemplateName
from matrix_ssl.llm.objective import DEFAULTS, Objective

RESULT, MODEL = "finetune.json", "model"  # file and folder of a run

# TrainingArguments of transformers that differ from its defaults
ARGUMENTS: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # below 1: a fraction of all steps
    "weight_decay": 0.0,
    "logging_steps": 1,
    "save_strategy": "epoch",
    "save_total_limit": 1,
}


@settings
class FineTuneSettings:
    """A model, what it learns, by which loss and how."""

    model: str  # folder, name of the hub, or config: and a configuration
    data: str  # file, or hf: and a name
    template: TemplateName
    columns: tuple[str, ...] = ()  # with questions and answers, or with messages; none: those with the usual names
    objective: Objective = DEFAULTS
    lora: NonNegativeInt = 0  # rank of adapters on all linear layers but the head; 0: all weights are trained
    load_in_4bit: bool = False  # hold the linear layers below the adapters in four bits
    epochs: PositiveFloat = 3.0  # passes over the data
    batch_size: PositiveInt = 128  # sequences of a step, of all processes and micro-batches together
    gradient_accumulation: PositiveInt = 1  # micro-batches of a step
    learning_rate: NonNegativeFloat = 2e-5  # peak
    max_length: Annotated[int, Ge(2)] = 2048  # tokens of a sequence; longer ones are cut
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0  # of the order of the data, of adapters and of random weights
    arguments: tuple[str, ...] = ()  # key=value, of transformers' TrainingArguments

    def __post_init__(self) -> None:
        """Raises ConfigError for four bits without adapters."""
        if self.load_in_4bit and not self.lora:
            raise ConfigError(
                "load_in_4bit needs adapters, as weights in four bits cannot be trained: set lora, for example lora=16."
            )

    def override(self, assignments: Iterable[str]) -> "FineTuneSettings":
        """Applies ``key=value`` assignments; a key that is no setting goes to transformers' TrainingArguments.

        Raises:
            ConfigError: as ``config.override``; ``arguments.parse_assignments`` checks the others.
        """
        own: list[str] = []
        others = list(self.arguments)
        names = {field.name for field in dataclasses.fields(self)} - {"arguments"}
        for assignment in assignments:
            is_own = split_assignment(assignment)[0].partition(".")[0] in names
            (own if is_own else others).append(assignment)
        return dataclasses.replace(override(self, own), arguments=tuple(others))

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
