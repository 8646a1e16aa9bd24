"""Checkpoints of a run: one safetensors file each, written atomically, verified when read, never a pickle.

A checkpoint holds every tensor of the method and of the optimizer under ``model.`` and ``optimizer.``, and in the file's
metadata the step, the optimizer's plain values and a SHA-256 digest over all of it. Since every random number of a run is a
function of the step, nothing else is needed to go on exactly.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from matrix_ssl.errors import CheckpointError, did_you_mean
from matrix_ssl.record import CHECKPOINTS, write_atomically

KEEP = 2  # the newest, and the one before in case the newest is damaged


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to go on after ``step`` steps."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]  # as torch.optim.Optimizer.state_dict() gives it
    counters: dict[str, int]  # of the training loop


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Writes ``checkpoints/step-N.safetensors`` and removes all but the newest two.

    Raises:
        RunFolderError: it could not be written; older checkpoints stay as they are.
    """
    folder = run / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
    for index, state in checkpoint.optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items() if v is not None}
    groups = [{k: v for k, v in group.items()} for group in checkpoint.optimizer["param_groups"]]
    values = json.dumps({"step": checkpoint.step, "counters": checkpoint.counters, "param_groups": groups})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(tensors, metadata={"values": values, "sha256": _digest(tensors, values)})
    path = folder / f"step-{checkpoint.step:09d}.safetensors"
    write_atomically(path, lambda file: file.write(content) and None)
    for old in list_checkpoints(run)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint files of a run, oldest first."""
    return sorted((run / CHECKPOINTS).glob("step-*.safetensors"))


def load_newest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a sentence about every damaged one that was passed over.

    Returns:
        (None, []) for a run without checkpoints.

    Raises:
        CheckpointError: there are checkpoints and all of them are damaged.
    """
    problems: list[str] = []
    for path in reversed(list_checkpoints(run)):
        try:
            return load_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"no checkpoint can be read: {' '.join(problems)} Use --fresh to start over.")
    return None, []


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint.

    Raises:
        CheckpointError: the file is missing, cut, altered or not a checkpoint of this package.
    """
    tensors, metadata = read_safetensors(path)
    values = metadata.get("values", "")
    if not values or metadata.get("sha256") != _digest(tensors, values):
        raise CheckpointError(f"{path} is damaged: its SHA-256 digest does not match its content.")
    plain = json.loads(values)
    model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimizer = {"state": state, "param_groups": plain["param_groups"]}
    return Checkpoint(plain["step"], model, optimizer, plain["counters"])


def save_weights(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes a module's parameters and buffers as safetensors, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    content = save(tensors, metadata=dict(metadata))
    write_atomically(path, lambda file: file.write(content) and None)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads weights that must fit name by name and shape by shape.

    Raises:
        CheckpointError: it lists the names that are missing, left over or of another shape; the module is unchanged.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    if missing or extra or reshaped:
        matched = len(own) - len(missing) - len(reshaped)
        parts = [("missing", missing), ("not in the network", extra), ("of another shape", reshaped)]
        listed = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in parts if names)
        hint = did_you_mean(missing[0], extra) if len(missing) == len(extra) == 1 else ""
        raise CheckpointError(f"{source} matches {matched} of {len(own)} tensors of the network; {listed}.{hint}")
    module.load_state_dict(dict(tensors))


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names) - 8} more)" if len(names) > 8 else "")


def _digest(tensors: Mapping[str, Tensor], values: str) -> str:
    digest = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
