"""Checkpoints of a run: one safetensors file each, written atomically and verified when read; never a pickle.

A checkpoint holds every tensor of the method and of the optimizer under ``model.`` and ``optimizer.`` and, in the
file's metadata, the step and the optimizer's plain values. Since every random number of a run is a function of the
step, nothing else is needed to resume exactly. The metadata of every file also contain a SHA-256 digest of everything
else in it.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from matrix_ssl.config.untrusted import open_file, parse_json, why
from matrix_ssl.errors import OFFERED, CheckpointError, RunFolderError, did_you_mean, memory_is_short, some
from matrix_ssl.runs.files import cannot_write, write_atomically
from matrix_ssl.runs.folder import CHECKPOINTS, ENCODER, STEP, check_owner, identity

_OPTIMIZER = re.compile(r"optimizer\.\d{1,9}\.[^.]+")
KEEP = 2  # the newest, and the one before in case the newest is damaged


@dataclass(frozen=True)
class Checkpoint:
    """Everything that is needed to resume after ``step`` steps."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]  # as torch.optim.Optimizer.state_dict() gives it
    counters: dict[str, float]  # of the training loop
    observer: dict[str, Tensor] = field(default_factory=dict)  # state of the training's observer


def save_checkpoint(run: Path, checkpoint: Checkpoint, *, kept: Collection[int] = ()) -> Path:
    """Writes ``checkpoints/step-N.safetensors`` and removes all others but the newest before it and those in ``kept``.

    Args:
        run: the folder of the run.
        checkpoint: what to write.
        kept: steps whose checkpoints are not removed, up to the current one.
    """
    folder = run / CHECKPOINTS
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
    for index, state in checkpoint.optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items() if v is not None}
    tensors |= {f"observer.{name}": tensor for name, tensor in checkpoint.observer.items()}
    groups = checkpoint.optimizer["param_groups"]
    values = {"step": checkpoint.step, "counters": checkpoint.counters, "param_groups": groups, "run": identity(run)}
    path = folder / _name(checkpoint.step)
    _write(path, tensors, {"values": json.dumps(values)})
    keep = [p for p in list_checkpoints(run) if p.name <= path.name][-KEEP:]  # later ones are damaged or superseded
    keep += [folder / _name(step) for step in kept if step <= checkpoint.step]
    for other in set(list_checkpoints(run)) - set(keep):
        other.unlink(missing_ok=True)
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint files of a run, oldest first; files with other names, such as copies, belong to the user."""
    found = (run / CHECKPOINTS).glob("step-*.safetensors")
    return sorted(path for path in found if STEP.fullmatch(path.name))


def load_newest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint, if any, and a sentence about every damaged one that was skipped.

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
        remedy = OFFERED.first("Use --fresh to start over.", otherwise="Put an undamaged copy back.")
        raise CheckpointError(f"no checkpoint can be read: {' '.join(problems)} {remedy}")
    return None, []


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint; raises CheckpointError if it is missing, truncated, altered or not of this package."""
    tensors, metadata = read_safetensors(path)
    if not is_of_a_training(metadata):
        raise CheckpointError(f"{path} is not a checkpoint of this package.")
    plain = _plain_values(metadata["values"], path)
    if path.name != _name(plain["step"]):
        raise CheckpointError(f"{path} holds step {plain['step']}: rename it to {_name(plain['step'])}.")
    try:
        check_owner(path, plain.get("run"), path.parent.parent)
    except RunFolderError as error:
        raise CheckpointError(str(error)) from error
    model, observer = (
        {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("model.", "observer.")
    )
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2) if _OPTIMIZER.fullmatch(key) else ("", "", "")
            if not name:
                raise CheckpointError(f"{path} is not a checkpoint of this package: it has a tensor {key!r}.")
            state.setdefault(int(index), {})[name] = tensor
    optimizer = {"state": state, "param_groups": plain["param_groups"]}
    return Checkpoint(plain["step"], model, optimizer, plain["counters"], observer)


def is_of_a_training(metadata: Mapping[str, str]) -> bool:
    """Whether a file with such metadata was written by ``save_checkpoint``."""
    return metadata.keys() >= {"values", "sha256"}


def _plain_values(text: str, path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, checked to have the types that ``save_checkpoint`` writes."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a checkpoint of this package: {error}.") from error
    kinds = {"step": int, "counters": dict, "param_groups": list}
    wrong = [name for name, kind in kinds.items() if not isinstance(values, dict) or type(values.get(name)) is not kind]
    if not wrong:
        if not all(isinstance(group, dict) for group in values["param_groups"]):
            wrong.append("param_groups")
        if not all(type(count) in (int, float) for count in values["counters"].values()):
            wrong.append("counters")
    if wrong:
        raise CheckpointError(f"{path} is not a checkpoint of this package: its {wrong[0]} is not what it writes.")
    return dict(values)


def save_weights(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes a module's parameters and buffers as safetensors, atomically."""
    _write(path, module.state_dict(), metadata)


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a safetensors file with a digest in its metadata; the same arguments give the same bytes."""
    tensors = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    content = save(tensors, metadata={**metadata, "sha256": digest(tensors, metadata)})
    # the library writes metadata in random order, so the header (its length in 8 bytes, then JSON) is rewritten
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors that share memory with an earlier one, as tied weights do, which the format does not support."""
    apart, seen = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def save_encoder(run: Path, encoder: nn.Module) -> None:
    """Writes ``encoder.safetensors``, with the identity of its run."""
    save_weights(run / ENCODER, encoder, {"weights": "student", "run": identity(run)})


def read_encoder(run: Path) -> dict[str, Tensor]:
    """The tensors of ``encoder.safetensors``; CheckpointError if it is missing, damaged or of a different run."""
    tensors, metadata = read_safetensors(run / ENCODER)
    try:
        check_owner(run / ENCODER, metadata.get("run"), run)
    except RunFolderError as error:
        raise CheckpointError(str(error)) from error
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises CheckpointError if it is missing, truncated or altered."""
    try:
        with open_file(path), safe_open(path, "pt") as file:  # Python's errors distinguish absent from forbidden
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except PermissionError:
        raise CheckpointError(f"{path} cannot be read: no permission.") from None
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        if memory_is_short(error, size=path.stat().st_size):
            raise MemoryError from error
        raise CheckpointError(f"{path} is damaged: {why(error)}.") from error
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    if "sha256" in metadata and metadata["sha256"] != digest(tensors, rest):
        raise CheckpointError(f"{path} is damaged: its SHA-256 digest does not match its content.")
    return tensors, metadata


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads weights that must fit name by name and shape by shape.

    Raises:
        CheckpointError: with the names that are missing, left over or have a different shape; the module is
            unchanged.
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
        listed = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in parts if names)
        hint = did_you_mean(missing[0], extra) if len(missing) == len(extra) == 1 else ""
        raise CheckpointError(f"{source} matches {matched} of {len(own)} tensors of the network; {listed}.{hint}")
    module.load_state_dict(dict(tensors))


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 of metadata and of tensors' names, types, shapes and values, whatever their order and device."""
    found = hashlib.sha256(json.dumps(dict(metadata or {}), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()


def _name(step: int) -> str:
    return f"step-{step:09d}.safetensors"


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    content = encode(tensors, metadata)
    write_atomically(path, lambda file: file.write(content))
