"""Reads the tensors of a checkpoint from any program, without ever executing a pickle.

safetensors files hold nothing but tensors. PyTorch's files are pickles: they are read by PyTorch's own restricted
reader (``weights_only=True``), which builds tensors and plain containers and refuses everything else. The objects that
training programs store alongside the tensors, such as a NumPy scalar or the program's arguments, are listed in
``INERT`` and become empty objects: no class or function of that name is looked up or called.
"""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from matrix_ssl.config.untrusted import file_sha256, open_file
from matrix_ssl.data.files.open_files import why_unreadable
from matrix_ssl.errors import CheckpointError, memory_is_short
from matrix_ssl.runs.checkpoint import is_of_a_training, read_safetensors
from matrix_ssl.runs.folder import CHECKPOINTS

TRAINING_STATE = re.compile(r"(optimizer|scaler|lr_scheduler|callbacks|loops|hyper_parameters|args)\w*$")
_OURS = {"architecture", "weights", "method"}  # metadata of every file of this package
_HEAD = 512  # bytes that identify the type of a file
_OTHER_FILES = (
    (b"\x89HDF", "an HDF5 file, as Keras writes"), (b"GGUF", "a GGUF file"), (b"\x93NUMPY", "an array of NumPy"),
    (b"\x1f\x8b", "a compressed archive"), (b"7z\xbc\xaf", "a 7z archive"), (b"%PDF", "a PDF file"),
)  # fmt: skip
_MOST_NAMES = 100_000  # in all groups; a group that appears in several places counts in each
_MOST_REPEATED = 2**26  # bytes of a tensor that is larger than its storage
_DEEPEST = 8  # nested groups; more indicate a loop or an attack


class Inert:
    """Replaces an object that is not a tensor: accepts any arguments and state, and keeps none."""

    def __new__(cls, *_: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _no_items(*_: Any) -> dict[Any, Any]:
    """Replaces a ``defaultdict``: an empty dictionary without its factory."""
    return {}


# objects alongside the tensors in published checkpoints, and their replacements; any other name is refused
INERT: dict[str, Any] = {
    **dict.fromkeys([
        "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",  # learning rates, accuracies
        "argparse.Namespace", "pathlib.PosixPath", "pathlib._local.PosixPath",  # arguments of the program
        "__main__.exclude_bias_and_norm",  # a function in the optimizers of Barlow Twins and VICReg
        "builtins.dict", "builtins.list", "builtins.int", "builtins.float", "builtins.str", "builtins.bool",
        "typing.Any", "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode",
        "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata",  # settings of solo-learn
    ], Inert),
    "collections.defaultdict": _no_items,
    "pytorch_lightning.utilities.parsing.AttributeDict": OrderedDict,  # settings of PyTorch Lightning, a dictionary
    "lightning.fabric.utilities.data.AttributeDict": OrderedDict,
    "lightning_fabric.utilities.data.AttributeDict": OrderedDict,
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """The content of a checkpoint."""

    tensors: dict[str, Tensor]  # by dotted path through the groups of the file
    metadata: dict[str, str]  # of safetensors that this package exported, else empty
    lightning: bool  # written by PyTorch Lightning
    sha256: str


def read_tensors(path: Path) -> Contents:
    """The tensors of a safetensors or PyTorch file, in the zip or the older format; nothing in it is executed.

    Nested groups, such as ``{"state_dict": {"module.encoder.conv1.weight": ...}}``, become dotted names. The state
    of optimizers, learning-rate schedules and loss scalers is skipped.
    """
    head = _head(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        stored, metadata = read_safetensors(path)
        if is_of_a_training(metadata):
            raise CheckpointError(
                f"{path} is a checkpoint of a run, whose config.json describes it: name it in the folder of the run, "
                f"RUN/{CHECKPOINTS}/{path.name}, without other options."
            )
        return Contents(stored, metadata if metadata.keys() >= _OURS else {}, lightning=False, sha256=file_sha256(path))
    loaded = _load(path)
    tensors: dict[str, Tensor] = {}
    for number, (name, tensor) in enumerate(_walk(loaded, "", _DEEPEST), 1):
        if number > _MOST_NAMES:
            raise CheckpointError(
                f"{path} has more than {_MOST_NAMES:,} names in its groups, more than any network: it was not read."
            )
        if tensor is not None:
            tensors[name] = tensor
            if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
                kind = "nothing but its shape" if tensor.is_meta else "sparse, quantised or nested numbers"
                raise CheckpointError(f"{path}: {name} holds {kind}; save it as a dense tensor of floats.")
            if tensor.nbytes > max(_MOST_REPEATED, tensor.untyped_storage().nbytes()):  # an expanded one
                raise CheckpointError(
                    f"{path}: {name} of shape {tuple(tensor.shape)} repeats few numbers; it was not read."
                )
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors with names; import a checkpoint of a network.")
    lightning = isinstance(loaded, Mapping) and "pytorch-lightning_version" in loaded
    return Contents(tensors, {}, lightning, file_sha256(path))


def _head(path: Path) -> bytes:
    """The first bytes; CheckpointError if the file is of another common type."""
    try:
        with open_file(path) as file:
            head = file.read(_HEAD)
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder; name the file in it, such as model.safetensors.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {why_unreadable(error)}; name a checkpoint file.") from error
    if not head:
        raise CheckpointError(f"{path} is empty; download it again.")
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        raise CheckpointError(f"{path} is a web page, not a checkpoint; download the file that the page links to.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is only a pointer to a file in Git LFS; fetch it with git lfs pull.")
    kind = next((kind for start, kind in _OTHER_FILES if head.startswith(start)), "")
    if kind or path.suffix.lower() == ".onnx":
        raise CheckpointError(
            f"{path} is {kind or 'an ONNX file'}, which is not read; import a file of PyTorch or safetensors."
        )
    if head.startswith(b"PK"):
        _refuse_archives(path)
    return head


def _refuse_archives(path: Path) -> None:
    """Raises CheckpointError for zip files that are not weights: PyTorch programs and NumPy arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged bytes make it fail in any way; PyTorch's reader says what is wrong
        return
    if any(name.endswith("/constants.pkl") or "/code/__torch__" in name for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program (torch.jit.save), which would have to be executed. If you trust it, save "
            "its weights alone, torch.save(torch.jit.load(FILE).state_dict(), WEIGHTS), and import those."
        )
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        raise CheckpointError(
            f"{path} is a program of torch.export, not weights: save the state dict of its model by torch.save and "
            "import that."
        )
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(f"{path} is not a file of weights but of NumPy's arrays; import a file of PyTorch.")


def _load(path: Path) -> Any:
    _check_archive(path)
    stand_ins: list[Any] = [(stand_in, name) for name, stand_in in INERT.items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # about old pickle protocols; real damage is an error below
            with open_file(path) as file:
                return torch.load(BufferedReader(file), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path} needs {refused[1]!r}, which weights do not: it was refused and nothing was executed. "
                "If you trust its origin, save the weights alone in the program that wrote it, "
                "torch.save(model.state_dict(), FILE), and import that file."
            ) from None
        raise _damaged(path) from error
    except Exception as error:  # the bytes of a damaged file can make the reader fail in any way
        if memory_is_short(error, size=path.stat().st_size):
            raise MemoryError from error
        raise _damaged(path) from error


def _check_archive(path: Path) -> None:
    """Raises CheckpointError for an archive that unpacks to more than its size: PyTorch compresses nothing."""
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            size, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    except Exception:  # the older format is not an archive, and PyTorch's reader reports damage
        return
    if unpacked > size:
        raise CheckpointError(
            f"{path} is compressed: its {size:,} bytes unpack to {unpacked:,}; save the weights again by torch.save."
        )


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a file of weights, or is damaged: expected safetensors or a file of torch.save; "
        "compare its size with the source and download it again."
    )


def _walk(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor | None]]:
    """Dotted names in nested groups whose keys are text, with their tensors; None for anything else."""
    if not isinstance(group, Mapping) or depth == 0:
        return
    for key, value in group.items():
        if not isinstance(key, str):
            continue
        yield prefix + key, value.detach() if isinstance(value, Tensor) else None
        if isinstance(value, Tensor):
            continue
        if prefix or not TRAINING_STATE.match(key):
            yield from _walk(value, f"{prefix}{key}.", depth - 1)
