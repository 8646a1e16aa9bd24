"""Merging an adapter into its model, so that programs which know no adapters can open the result."""

import shutil
from pathlib import Path

import torch

from matrix_ssl.data.hub import open_pretrained, quiet_transformers
from matrix_ssl.errors import CheckpointError, ConfigError, RunFolderError, import_extra, system_error
from matrix_ssl.llm.adapters import load_adapter, read_base
from matrix_ssl.llm.models import find_model, is_folder, open_model, open_tokenizer
from matrix_ssl.runs.files import cannot_write
from matrix_ssl.runs.folder import lock

_ROUNDING = 1e-3  # of logits, relative, in float32


def merge(model: str, out: Path) -> torch.dtype:
    """Writes the model of an adapter with the adapter added to its weights, and its tokenizer, into a folder.

    The weights are added in float32 and stored in the precision of the model that the adapter belongs to, which is
    returned. The folder appears only when it is complete.

    Args:
        model: a run of ``llm finetune`` or a folder that holds an adapter.
        out: a folder that does not exist or is empty.

    Raises:
        ConfigError: the model holds no adapter, or its adapter belongs to a model with quantized weights.
        RunFolderError: the folder is not empty, is being written by another process, or cannot be written.
        CheckpointError: the model or its adapter cannot be loaded, or the merged model answers differently.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    with lock(temporary):
        stored = _merge(model, out, temporary / "model")
    shutil.rmtree(temporary, ignore_errors=True)
    return stored


def _merge(model: str, out: Path, temporary: Path) -> torch.dtype:
    """Does the work of ``merge`` with a temporary folder that is renamed."""
    transformers = import_extra("transformers", extra="llm")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out} is not an empty folder: choose another place for the merged model.")
    place, _ = find_model(model)
    base = read_base(Path(place)) if is_folder(place) else None
    if base is None:
        raise ConfigError(f"{model} holds no adapter, so there is nothing to merge: use it as it is.")
    tokenizer = open_tokenizer(place)
    with quiet_transformers():
        whole = open_model(base)
        if getattr(whole, "is_quantized", False):
            raise ConfigError(
                f"{place} is an adapter to {base}, whose weights are quantized and cannot hold the sum: set "
                f"base_model_name_or_path in its adapter_config.json to the model before quantization."
            )
        stored = open_pretrained(transformers.AutoConfig.from_pretrained, base, place=base).dtype or torch.float32
        with torch.no_grad():
            adapted = load_adapter(whole, Path(place), is_trainable=False).eval()
            ids = torch.arange(min(8, whole.get_input_embeddings().num_embeddings)).unsqueeze(0)
            before = adapted(input_ids=ids).logits
            try:
                merged = adapted.merge_and_unload()
            except (AttributeError, ValueError, NotImplementedError) as failure:  # such as of a learned prompt
                raise ConfigError(f"{place} holds an adapter that peft cannot merge: {failure}.") from failure
            error = (merged(input_ids=ids).logits - before).norm() / before.norm()
    if not error < _ROUNDING:
        raise CheckpointError(f"{place}: the merged model answers differently, by {error:.0e}; the adapter is damaged.")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        merged.to(stored).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except Exception as failure:  # libraries report a full disk by errors of their own
        if (refused := system_error(failure)) is None:
            raise
        raise cannot_write(out, refused) from failure
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    result: torch.dtype = stored
    return result
