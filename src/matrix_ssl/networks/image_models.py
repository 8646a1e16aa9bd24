"""Image models of transformers as encoders: built from their configuration, with one feature vector per image."""

import json
from typing import Any

from torch import Tensor, nn

from matrix_ssl.errors import ConfigError, import_extra, is_out_of_memory

PREFIX = "hf:"  # stands before their names, which are those on the Hugging Face hub


class ImageModel(nn.Module):
    """A transformers model whose features are its pooled output, or its first token if it has none.

    A pooler that is a dense layer with tanh, like BERT's, is left out of ``model`` and the first token is used:
    published image models come without one, or leave it randomly initialised.

    Args:
        configuration: JSON, the ``config.json`` of a model; only classes of transformers itself are built.
        place: the name of the model in messages.

    Raises:
        ConfigError: it is not the configuration of a model that takes only images.
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
