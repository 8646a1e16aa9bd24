"""Opening a causal language model and its tokenizer: a folder, a name of the Hugging Face hub, or a configuration."""

import importlib.util
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from matrix_ssl.data.hub import import_transformers, open_pretrained, quiet_transformers
from matrix_ssl.errors import CheckpointError, ConfigError, MissingExtra
from matrix_ssl.runs import devices

FROM_CONFIG = "config:"
_CONFIG, _ADAPTER, _TOKENIZER = "config.json", "adapter_config.json", "tokenizer_config.json"


def is_folder(model: str) -> bool:
    """Whether it is a place on disk; everything else is a name of the hub."""
    return Path(model).exists() or model.startswith((os.sep, ".", "~"))


def open_tokenizer(model: str) -> Any:
    """The tokenizer that lies beside a model, or beside a configuration.

    Raises:
        CheckpointError: there is none, or it needs code of its own.
        MissingExtra: transformers is not installed.
    """
    transformers = import_transformers()
    place = model.removeprefix(FROM_CONFIG)
    if is_folder(place):
        folder = _folder_of(model)
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder} does not exist: --model takes the folder of a model, or its name on the hub."
            )
        if not (folder / _TOKENIZER).is_file():
            raise CheckpointError(f"{folder} has no tokenizer ({_TOKENIZER}): save it there by save_pretrained.")
        place = str(folder)
    try:
        return open_pretrained(transformers.AutoTokenizer.from_pretrained, place, place=place)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the tokenizer of {place} cannot be loaded: {error}") from error


def open_model(model: str, *, seed: int = 0, adapter: bool = False, four_bits_on: torch.device | None = None) -> Any:
    """The model, in float32.

    Args:
        model: a folder with a configuration and safetensors, a name of the hub, or ``config:`` and a folder or file
            with a configuration, for random weights.
        seed: of random weights.
        adapter: also open a folder that holds an adapter and the name of its base.
        four_bits_on: the device of a model whose linear layers but the head are held in four bits, and which has to
            get adapters to be trained. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023:
            NF4, with quantized scales.

    Raises:
        CheckpointError: configuration or weights are missing or damaged, or need code of their own.
        ConfigError: it is an adapter where none is expected, or four bits are asked for random weights.
        MissingExtra: transformers is not installed, or bitsandbytes for four bits.
    """
    transformers = import_transformers()
    if model.startswith(FROM_CONFIG):
        if four_bits_on is not None:
            raise ConfigError(f"--load-in-4bit with {model}: random weights are trained whole, not below adapters.")
        place = model.removeprefix(FROM_CONFIG)
        path = Path(place) / _CONFIG if Path(place).is_dir() else Path(place)
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist: --model {FROM_CONFIG}… takes a model's configuration.")
        try:
            config = open_pretrained(transformers.AutoConfig.from_pretrained, str(path), place=str(path))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is not the configuration of a model: {error}") from error
        transformers.set_seed(seed)
        auto = transformers.AutoModelForCausalLM
        return open_pretrained(auto.from_config, config, place=str(path), dtype=torch.float32)
    if is_folder(model):
        check_folder(Path(model), adapter=adapter)
        model = str(Path(model).resolve())  # an adapter remembers where its model lies
    quantized = {} if four_bits_on is None else _four_bits(four_bits_on)
    try:
        opened, found = open_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained, model, place=model,
            dtype=torch.float32, use_safetensors=True, output_loading_info=True, **quantized,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{model} cannot be loaded: {error}") from error
    except Exception as error:  # safetensors has an error of its own, not derived from the above
        if type(error).__module__.startswith("safetensors"):
            raise CheckpointError(f"{model} cannot be loaded: its weights are damaged ({error}).") from error
        raise
    check_complete(model, found["missing_keys"])
    return opened


def _four_bits(device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` takes for a quantized model."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "qlora")
    bfloat16 = devices.choose_precision("auto", device) == "bfloat16"
    config = import_transformers().BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bfloat16 else torch.float32,
    )  # fmt: skip
    return {"quantization_config": config, "device_map": {"": device}}


def check_complete(model: str, missing: Iterable[str]) -> None:
    """Raises CheckpointError where tensors of a model were not in its files: transformers makes them random."""
    names = sorted(missing)
    if names:
        raise CheckpointError(
            f"{model} lacks {len(names)} tensors of the model, {names[0]} among them, which would be random numbers: "
            "copy all files of weights."
        )


def add_lora(model: Any, *, rank: int, seed: int) -> Any:
    """The model with low-rank adapters on all linear layers but the head; nothing else is trained.

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. The scale is 2, alpha being
    twice the rank, and there is no dropout.

    Raises:
        MissingExtra: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", "llm") from error
    import_transformers().set_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return get_peft_model(model, config)


def open_body(model: str) -> Any:
    """The body of a model in the precision of its weights, for evaluation, on the CPU.

    Args:
        model: a folder with a configuration and safetensors, or a name of the hub.

    Raises:
        CheckpointError: configuration or weights are missing, damaged or not complete.
        ConfigError: it is an adapter, or has a decoder that reads an encoder.
        MissingExtra: transformers is not installed.
    """
    if is_folder(model):
        check_folder(Path(model), adapter=False)
    with quiet_transformers(least=logging.ERROR) as transformers:  # it warns of the unused head
        try:
            body, found = open_pretrained(
                transformers.AutoModel.from_pretrained, model, place=model,
                dtype="auto", use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
        except CheckpointError:
            raise
        except Exception as error:  # damaged files make the reader fail in any way
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            raise CheckpointError(f"{model} cannot be opened as a model: {reason}") from error
    # a pooler comes after the hidden states, and models that predict tokens are saved without one
    check_complete(model, (name for name in found["missing_keys"] if not name.startswith("pooler.")))
    if getattr(body.config, "is_encoder_decoder", False):
        raise ConfigError(f"{model} is an encoder with a decoder: only models that read one sequence are measured.")
    body.config.use_cache = False
    return body.eval()


def untrained(body: Any, *, seed: int) -> Any:
    """The same configuration with the random weights that transformers begins with, a function of the seed."""
    with quiet_transformers(least=logging.ERROR) as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto = transformers.AutoModel
        return open_pretrained(auto.from_config, body.config, place=body.config.name_or_path, dtype=body.dtype).eval()


def check_folder(folder: Path, *, adapter: bool) -> None:
    """Raises CheckpointError for a folder that holds no model, ConfigError for an adapter unless ``adapter``."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist: --model takes the folder of a model, or its name on the hub.")
    if (folder / _ADAPTER).is_file():
        if not adapter:
            raise ConfigError(
                f"{folder} holds an adapter: merge it into its model first (merge_and_unload of peft), and save that."
            )
        return
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(f"{folder} is not the folder of a model: it has no {_CONFIG}.")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        what = "only pickled ones (.bin), which are never loaded" if pickled else f"only {_CONFIG}"
        remedy = f"random weights are --model {FROM_CONFIG}{folder}"
        raise CheckpointError(f"{folder} has no weights in safetensors, {what}: save them there; {remedy}.")


def _folder_of(model: str) -> Path:
    """The folder of a model or of a configuration, which may be given as a file."""
    path = Path(model.removeprefix(FROM_CONFIG))
    return path.parent if path.is_file() else path
