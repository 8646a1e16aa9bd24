"""Image models of transformers as encoders: built from their configuration, with one vector for each image."""

import json
from typing import Any

from torch import Tensor, nn

from matrix_ssl.errors import ConfigError, import_extra, is_out_of_memory

PREFIX = "hf:"  # of their names, as on the Hugging Face hub


class ImageModel(nn.Module):
    """A model of transformers with its features: its pooled output, or its first token where it pools nothing.

    A pooler that is a dense layer with tanh, as BERT's, is left out and the first token is taken: published image
    models do without it, or leave it at random. It is not part of ``model``.

    Args:
        configuration: JSON, the ``config.json`` of a model; only classes of transformers itself are built.
        place: its name in messages.

    Raises:
        ConfigError: it is not the configuration of a model that takes images alone.
        MissingExtra: transformers is not installed.
    """

    def __init__(self, configuration: str, *, place: str):
        super().__init__()
        transformers = import_extra("transformers", extra="huggingface")
        try:
            values: dict[str, Any] = dict(json.loads(configuration))
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{place}: its configuration is not that of a model ({error}).") from error
        kind = values.pop("model_type", None)
        if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
            raise ConfigError(f"{place}: transformers has no model of type {kind!r}; choose a different encoder.")
        try:
            config = transformers.CONFIG_MAPPING[kind].from_dict({k: v for k, v in values.items() if k != "auto_map"})
            model = transformers.AutoModel.from_config(config, trust_remote_code=False)
        except ValueError as error:
            raise ConfigError(f"{place}: transformers has no AutoModel of type {kind!r}.") from error
        except (TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(
                f"{place}: transformers cannot build the model of its configuration ({error})."
            ) from error
        if getattr(model, "main_input_name", None) != "pixel_values" or hasattr(model, "text_model"):
            raise ConfigError(f"{place} is a model of type {kind!r}, which does not take images alone.")
        if hasattr(getattr(model, "pooler", None), "dense"):
            model.pooler = None
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, s, s) to (n, k)."""
        output = self.model(pixel_values=images)
        pooled = output.get("pooler_output")
        return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
