"""Where memory is short no file is called damaged; where a damaged file asks for more than there is, it is."""

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from matrix_ssl import errors
from matrix_ssl.config import arrays
from matrix_ssl.data.files.images import decode_image
from matrix_ssl.encoder import reading
from matrix_ssl.errors import CheckpointError, UnreadableImage, is_out_of_memory, memory_is_short
from matrix_ssl.runs import checkpoint

SHORT = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def test_what_the_system_refuses() -> None:
    assert memory_is_short(MemoryError(), size=2**60)
    assert not memory_is_short(MemoryError(), size=0)
    assert not memory_is_short(ValueError("damaged"), size=2**60)
    assert is_out_of_memory(SHORT) and is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))


def readers(folder: Path) -> dict[str, Any]:
    """Calls that read a file of each kind, with the module and the name of what they read it by."""
    torch.save({"a": torch.zeros(2)}, folder / "a.pth")
    (folder / "a.safetensors").write_bytes(checkpoint.encode({"a": torch.zeros(2)}, {}))
    np.savez(folder / "a.npz", a=np.zeros(2))
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    return {
        "torch": (lambda: reading.read_tensors(folder / "a.pth"), torch, "load", CheckpointError),
        "safetensors": (
            lambda: checkpoint.read_safetensors(folder / "a.safetensors"),
            checkpoint,
            "safe_open",
            CheckpointError,
        ),
        "arrays": (lambda: arrays.read_arrays(folder / "a.npz"), arrays, "_read", ValueError),
        "image": (lambda: decode_image((folder / "a.png").read_bytes(), "a.png"), Image, "open", UnreadableImage),
    }


@pytest.mark.parametrize("name", ["torch", "safetensors", "arrays", "image"])
def test_a_file_is_damaged_only_where_there_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read, module, function, damaged = readers(tmp_path)[name]

    def refuse(*_: object, **__: object) -> NoReturn:
        raise MemoryError

    read()
    monkeypatch.setattr(module, function, refuse)
    with pytest.raises(damaged):
        read()
    monkeypatch.setattr(errors, "_LEAST", 2**60)  # as if the system had nothing left
    with pytest.raises(MemoryError):
        read()
