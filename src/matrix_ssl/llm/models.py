"""Opening language models and their tokenizers from a folder, the Hugging Face hub, or a configuration.

Code in a model's folder is never run.
"""

import importlib.util
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from matrix_ssl.data.hub import open_pretrained, quiet_transformers
from matrix_ssl.errors import CheckpointError, ConfigError, MissingExtra, RunFolderError, import_extra, is_out_of_memory
from matrix_ssl.llm.adapters import apply_adapter, holds_adapter, read_base
from matrix_ssl.llm.finetune.settings import MODEL, RESULT
from matrix_ssl.runs import devices
from matrix_ssl.runs.digests import compare_digests
from matrix_ssl.runs.files import read_json, read_object
from matrix_ssl.runs.folder import ENVIRONMENT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FROM_CONFIG = "config:"
_ROUNDING = 1e-5  # of logits in float32; they are equal if no later token is seen
_CONFIG, _TOKENIZER = "config.json", "tokenizer_config.json"


def is_folder(model: str) -> bool:
    """Whether ``model`` is a path; everything else is a name on the hub."""
    return Path(model).exists() or model.startswith((os.sep, ".", "~"))


def find_model(model: str) -> tuple[str, dict[str, Any]]:
    """What ``model`` stands for, and the settings if it is a fine-tuning run, which stands for the model in its folder.

    Everything else stands for itself. After ``config:`` there may be a run, too.

    Raises:
        CheckpointError: the folder does not exist, or the run's model has changed since it was written.
        RunFolderError: the run is not complete.
        ConfigError: the name is that of an adapter on the hub.
    """
    run = Path(model.removeprefix(FROM_CONFIG))
    if not model.startswith(FROM_CONFIG):
        if is_folder(model):
            _check_exists(run)
        else:
            _refuse_adapter_of_hub(model)
    if not (run / ENVIRONMENT).is_file():
        return model, {}
    if not (run / RESULT).is_file():
        raise RunFolderError(f"The fine-tuning in {run} is not complete: run its command again first.")
    result = read_object(run / RESULT, "settings")
    if "files" in result:  # earlier versions have none
        compare_digests(run / MODEL, result["files"], others=True)
    prefix = FROM_CONFIG if model.startswith(FROM_CONFIG) else ""
    return f"{prefix}{run / MODEL}", result["settings"]


def open_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, or the one in the folder of a configuration."""
    transformers = import_extra("transformers", extra="llm")
    place = model.removeprefix(FROM_CONFIG)
    if is_folder(place):
        folder = Path(place).parent if place != model and Path(place).is_file() else Path(place)
        _check_exists(folder)
        if not (folder / _TOKENIZER).is_file():
            raise CheckpointError(f"{folder} has no tokenizer ({_TOKENIZER}): save it there with save_pretrained.")
        _check_config(folder)
        place = str(folder)
    try:
        return open_pretrained(transformers.AutoTokenizer.from_pretrained, place, place=place)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The tokenizer of {place} cannot be loaded: {error}") from error


def open_model(model: str, *, seed: int = 0, adapter: bool = False, four_bits_on: torch.device | None = None) -> Any:
    """A causal language model, a ``transformers.PreTrainedModel`` in float32.

    Args:
        model: a folder, a name on the hub, or ``config:`` and a folder or file, for random weights from the seed.
        adapter: whether a folder may hold an adapter and the name of its base model instead; both are opened.
        four_bits_on: the device of a model whose linear layers, except the head, are held in four bits; only adapters
            on it can be trained. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023:
            NF4, with quantized scales.
    """
    transformers = import_extra("transformers", extra="llm")
    if model.startswith(FROM_CONFIG):
        if four_bits_on is not None:
            raise ConfigError(f"load_in_4bit with {model}: random weights are trained whole, not below adapters.")
        config = _read_config(model)
        transformers.set_seed(seed)
        opener = transformers.AutoModelForCausalLM.from_config
        return open_pretrained(opener, config, place=model, dtype=torch.float32)
    quantized = {} if four_bits_on is None else _four_bits(four_bits_on)
    if is_folder(model):
        _check_folder(Path(model), adapter=adapter)
        if (base := read_base(Path(model))) is not None:
            return apply_adapter(open_model(base, four_bits_on=four_bits_on), Path(model))
        model = str(Path(model).resolve())  # an adapter stores the path of its model
    opened, missing = _load(transformers.AutoModelForCausalLM, model, dtype=torch.float32, **quantized)
    _check_complete(model, missing)
    _check_quantized(model, opened)
    if quantized and not getattr(opened.config.quantization_config, "load_in_4bit", False):
        method = _method(opened.config.quantization_config)
        raise ConfigError(f"The weights of {model} are quantized ({method}) but not in four bits: remove load_in_4bit.")
    return opened


def open_body(model: str, *, seed: int = 0) -> Any:
    """A model without its head, for evaluation, in the precision of its weights, on the CPU.

    Args:
        model: a folder, a name on the hub, or ``config:`` and a folder or file, for random weights from the seed.
    """
    if model.startswith(FROM_CONFIG):
        config = _read_config(model)
        with quiet_transformers(least=logging.ERROR) as transformers, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            body = open_pretrained(transformers.AutoModel.from_config, config, place=model, dtype=torch.float32)
        body.config.use_cache = False
        return body.eval()
    if is_folder(model):
        _check_folder(Path(model), adapter=False)
    with quiet_transformers(least=logging.ERROR) as transformers:  # it warns about the unused head
        body, missing = _load(transformers.AutoModel, model, dtype="auto")
    # a pooler comes after the hidden states, and models that predict tokens are saved without one
    _check_complete(model, (name for name in missing if not name.startswith("pooler.")))
    if getattr(body.config, "is_encoder_decoder", False):
        raise ConfigError(f"{model} is an encoder with a decoder: use a model that reads one sequence.")
    _check_quantized(model, body)
    body.config.use_cache = False
    return body.eval()


def untrained(body: "PreTrainedModel", *, seed: int) -> Any:
    """The same architecture with transformers' random initial weights, which depend only on the seed."""
    with quiet_transformers(least=logging.ERROR) as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        place = str(body.config.name_or_path)
        return open_pretrained(transformers.AutoModel.from_config, body.config, place=place, dtype=body.dtype).eval()


@torch.no_grad()
def check_causal(model: Any, name: str) -> None:
    """Raises ConfigError for a model that sees the tokens it has to predict, as encoders do: its loss falls to zero.

    What it predicts after one token must not depend on those that follow. Models that are quantized or sharded by
    ZeRO-3 are not checked.
    """
    if getattr(model, "is_quantized", False) or any(hasattr(p, "ds_id") for p in model.parameters()):
        return
    tokens = torch.tensor([[5, 6, 7, 8], [5, 9, 10, 11]], device=model.device)
    was_training = model.training
    first, second = model.eval()(input_ids=tokens % model.get_input_embeddings().num_embeddings).logits[:, 0].double()
    model.train(was_training)
    if (first - second).norm() > _ROUNDING * first.norm():
        raise ConfigError(
            f"{name} ({type(model).__name__}) sees the tokens that it has to predict: use a model that reads from left "
            f"to right, or set is_decoder to true in its configuration if it is a decoder."
        )


def check_tokens(body: Any, largest: int, name: str) -> None:
    """Raises ConfigError if the model has no embedding for the largest token of a text."""
    if largest >= (rows := body.get_input_embeddings().num_embeddings):
        raise ConfigError(
            f"Token id {largest} exceeds the {rows} embeddings of {name}; tokenizer and model do not match."
        )


def context_length(model: "PreTrainedModel") -> int | None:
    """The number of positions of a language model, also inside a larger model; None if nothing limits it."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _read_config(model: str) -> Any:
    """The configuration that ``config:`` names."""
    transformers = import_extra("transformers", extra="llm")
    place = model.removeprefix(FROM_CONFIG)
    path = Path(place) / _CONFIG if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: {FROM_CONFIG}… takes a model's configuration.")
    try:
        config = open_pretrained(transformers.AutoConfig.from_pretrained, str(path), place=str(path))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not the configuration of a model: {error}") from error
    for part in (config, config.get_text_config()):  # random weights are not quantized, and neither is what is saved
        vars(part).pop("quantization_config", None)
    return config


def _load(auto: Any, model: str, **options: Any) -> tuple[Any, list[str]]:
    """A model, and the names of the tensors that its files lack."""
    options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        opened, loading = open_pretrained(auto.from_pretrained, model, place=model, **options)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise errors of all kinds
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
        remedy = _quantized_remedy(model, in_four_bits="quantization_config" in options)
        raise CheckpointError(f"{model} cannot be loaded: {reason}.{remedy}") from error
    return opened, loading["missing_keys"]


def _quantized_remedy(model: str, *, in_four_bits: bool) -> str:
    """A hint for a model that cannot be loaded and, by its configuration, is quantized; empty for any other."""
    config = import_extra("transformers", extra="llm").PreTrainedConfig
    try:
        values, _ = config.get_config_dict(model)
    except (OSError, ValueError):
        return ""
    inner = values.get("text_config")
    quantization = values.get("quantization_config", inner and inner.get("quantization_config"))
    if quantization is None:
        return ""
    way = "remove load_in_4bit" if in_four_bits else "install the package that it needs"
    return f" Its weights are quantized ({_method(quantization)}): {way}, or use the model before quantization."


def _method(quantization: Any) -> str:
    """The name that a configuration, a dictionary or an object, gives its quantization method."""
    if isinstance(quantization, dict):
        return str(quantization.get("quant_method", "by no named method"))
    return str(getattr(quantization.quant_method, "value", quantization.quant_method))


def _check_quantized(model: str, opened: Any) -> None:
    """Raises CheckpointError for weights that are not quantized as the configuration says."""
    quantization = getattr(opened.config, "quantization_config", None)
    if not quantization:
        return
    if not getattr(opened, "is_quantized", False):
        raise CheckpointError(
            f"{model} says in {_CONFIG} that its weights are quantized ({_method(quantization)}), which transformers "
            f"does not support: use the model before quantization, or remove quantization_config if they are not."
        )
    layers = (layer for layer in opened.modules() if type(layer).__module__.startswith("bitsandbytes."))
    if any(type(getattr(layer, "weight", None)) is torch.nn.Parameter for layer in layers):
        raise CheckpointError(
            f"{model} says in {_CONFIG} that its weights are quantized ({_method(quantization)}), but its files hold "
            f"plain ones: remove quantization_config there."
        )


def _check_config(folder: Path) -> None:
    """Raises CheckpointError if the quantization is not a JSON object: libraries then fail without naming it."""
    path = folder / _CONFIG
    config = read_json(path) if path.is_file() else {}
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    if quantization is not None and not isinstance(quantization, dict):
        raise CheckpointError(
            f"{path}: quantization_config is {quantization!r}; expected an object with quant_method: copy the file "
            f"again, or remove the entry if the weights are not quantized."
        )


def _four_bits(device: torch.device) -> dict[str, Any]:
    """The options of ``from_pretrained`` for a quantized model."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "qlora")
    bfloat16 = device.type == "cuda" and devices.has_bfloat16(device)
    config = import_extra("transformers", extra="llm").BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bfloat16 else torch.float32,
    )  # fmt: skip
    return {"quantization_config": config, "device_map": {"": device}}


def _check_complete(model: str, missing: Iterable[str]) -> None:
    if names := sorted(missing):
        raise CheckpointError(
            f"{model} lacks {len(names)} tensor{'s' * (len(names) > 1)} of the model, such as {names[0]}, which would "
            f"stay random: copy all of its weight files."
        )


def _refuse_adapter_of_hub(name: str) -> None:
    """Raises ConfigError for the name of an adapter: a library would open its model without the checks of both."""
    utils = import_extra("transformers.utils", extra="llm")
    try:
        found = open_pretrained(lambda source, **_: utils.find_adapter_config_file(source), name, place=name)
    except (OSError, ValueError):
        return  # whoever opens it says why it cannot be opened
    if found is not None:
        raise ConfigError(
            f"{name} is an adapter on the hub: download it, by hf download {name} --local-dir FOLDER, and pass FOLDER."
        )


def _check_exists(folder: Path) -> None:
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder} {state}: --model takes the folder of a model or a name on the hub.")


def _check_folder(folder: Path, *, adapter: bool) -> None:
    _check_exists(folder)
    if holds_adapter(folder):
        if not adapter:
            raise ConfigError(
                f"{folder} holds an adapter: merge it into its model first, by matrix-ssl llm merge --model {folder} "
                f"--out FOLDER."
            )
        return
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(f"{folder} is not the folder of a model: it has no {_CONFIG}.")
    _check_config(folder)
    if not any(folder.glob("*.safetensors")):
        what = "only pickled ones (.bin), which are never loaded" if any(folder.glob("*.bin")) else f"only {_CONFIG}"
        raise CheckpointError(
            f"{folder} has no weights in safetensors, {what}: save them in that format, or use random weights with "
            f"--model {FROM_CONFIG}{folder}."
        )
