"""Low-rank adapters of a language model.

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matrix_ssl.errors import ConfigError, import_extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def _largest_rank(layer: Any) -> int:
    """The smaller side of a layer's matrix, which packed weights do not show."""
    return int(min(layer.in_features, layer.out_features) if hasattr(layer, "in_features") else min(layer.weight.shape))
