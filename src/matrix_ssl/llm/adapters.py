"""Low-rank adapters of a language model: new ones, and those in a folder that peft has written.

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matrix_ssl.errors import CheckpointError, ConfigError, import_extra, is_out_of_memory
from matrix_ssl.runs.files import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapters:
    """Which adapters a model gets.

    Attributes:
        rank: of the product of two matrices that is learned for each layer.
        alpha: the product is multiplied by alpha / rank.
        dropout: share of the inputs of adapters that are dropped in training, in [0, 1).
        targets: names of the layers that get one, such as ``q_proj``; empty: all linear layers except the head.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"rank {self.rank}"]
        parts += [f"alpha {self.alpha:g}"] * (self.alpha != 2 * self.rank)
        parts += [f"dropout {self.dropout:g}"] * bool(self.dropout)
        return ", ".join(parts) + (f" on {', '.join(self.targets)}" if self.targets else "")


def add_lora(model: "PreTrainedModel", adapters: Adapters, *, seed: int) -> Any:
    """The model with adapters, initialised from the seed; nothing else is trained.

    Raises:
        ConfigError: a target is not the name of a linear layer, or the rank is too large for all of them.
        MissingExtra: peft is not installed.
    """
    peft = import_extra("peft", extra="llm")
    from torch.nn import Linear
    from transformers import set_seed
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (Linear, Conv1D))}
    chosen = set(layers) if not adapters.targets else set()
    for target in adapters.targets:
        found = {name for name in layers if name == target or name.endswith(f".{target}")}
        if not found:
            names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise ConfigError(f"lora_targets={target}: the model has no linear layer of that name; it has {names}.")
        chosen |= found
    largest = max((_largest_rank(layers[name]) for name in chosen), default=adapters.rank)
    if adapters.rank > largest:
        raise ConfigError(f"lora={adapters.rank}: no linear layer has a rank above {largest}; choose at most that.")
    set_seed(seed)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=adapters.rank, lora_alpha=adapters.alpha, lora_dropout=adapters.dropout,
        target_modules=list(adapters.targets) or "all-linear",
    )  # fmt: skip
    return peft.get_peft_model(model, config)


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of peft."""
    return (folder / _CONFIG).is_file()


def read_base(folder: Path) -> str | None:
    """The path or name of the model that the adapter in a folder belongs to; None if there is no adapter.

    Raises:
        CheckpointError: the model is not there.
    """
    if not holds_adapter(folder):
        return None
    base = read_object(folder / _CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or (Path(base).is_absolute() and not Path(base).exists()):
        raise CheckpointError(
            f"{folder} is an adapter to the model {base}, which is not there: correct base_model_name_or_path in "
            f"{folder / _CONFIG}."
        )
    return base


def read_adapters(folder: Path) -> Adapters:
    """The rank, scale, dropout and layers of the low-rank adapters in a folder.

    Raises:
        ConfigError: the folder holds adapters of another kind.
        CheckpointError: the file that describes them is damaged.
    """
    config = read_object(folder / _CONFIG)
    if (kind := config.get("peft_type")) != "LORA":
        raise ConfigError(
            f"{folder} holds an adapter of the kind {kind}, but only those of low rank (LORA) are trained further."
        )
    try:
        rank, alpha, dropout = int(config["r"]), float(config["lora_alpha"]), float(config["lora_dropout"])
        targets = config["target_modules"]
        names = (targets,) if isinstance(targets, str) else tuple(sorted(targets))
    except (KeyError, TypeError, ValueError):
        rank = 0
    if rank < 1:
        raise CheckpointError(f"{folder / _CONFIG} does not describe adapters of low rank: copy the folder again.")
    return Adapters(rank, alpha, dropout, names)


def load_adapter(model: "PreTrainedModel", folder: Path, *, is_trainable: bool) -> Any:
    """The model with the adapter in a folder; if that is trainable, nothing else is.

    Raises:
        CheckpointError: the adapter has no weights in safetensors, is damaged, or belongs to a different model.
        MissingExtra: peft is not installed.
    """
    peft = import_extra("peft", extra="llm")
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds no {_WEIGHTS}: copy it there; pickled weights are never loaded.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)  # they would stay random
            return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    except Exception as error:  # damaged files raise errors of all kinds
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0][:200].rstrip(".")
        raise CheckpointError(f"The adapter in {folder} cannot be loaded: {reason}.") from error


def apply_adapter(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """The model with the adapter in a folder in its layers, for evaluation.

    Raises:
        CheckpointError: as for ``load_adapter``.
        ConfigError: the adapter is not in the layers, such as a learned prompt.
    """
    adapted = load_adapter(model, folder, is_trainable=False).eval()
    kind = adapted.active_peft_config
    if kind.is_prompt_learning or kind.is_adaption_prompt:
        raise ConfigError(
            f"{folder} holds an adapter of the kind {kind.peft_type.value}, which is not in the layers of its model: "
            f"use it with peft, or one of low rank (LORA)."
        )
    inner: PreTrainedModel = adapted.get_base_model()
    return inner


def _largest_rank(layer: Any) -> int:
    """The smaller side of a layer's matrix, which packed weights do not show."""
    return int(min(layer.in_features, layer.out_features) if hasattr(layer, "in_features") else min(layer.weight.shape))
