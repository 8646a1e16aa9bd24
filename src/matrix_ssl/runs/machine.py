"""The machine as a run would find it: devices, memory, limits and disks. Nothing here uses the network."""

import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from matrix_ssl.config import system
from matrix_ssl.runs.devices import bfloat16_instructions


def describe_machine() -> dict[str, Any]:
    """Operating system, Python, CPU, memory, limit of open files and shared memory; sizes in bytes, None: no limit."""
    total, free = system.memory()
    shared = shutil.disk_usage(system.SHARED_MEMORY) if system.SHARED_MEMORY.exists() else None
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "memory": {"total": total, "free": free},
        "open_files": system.open_file_limit(),
        "shared_memory": None if shared is None else {"total": shared.total, "free": shared.free},
        "folder": describe_folder(Path()),
    }


def describe_devices() -> list[dict[str, Any]]:
    """The devices that ``--device`` can name here, with the choice of ``auto`` first; memory in bytes."""
    multiplied_by = bfloat16_instructions(torch.device("cpu"))
    cpu = {
        "device": "cpu",
        "name": system.processor(),
        "cores": system.cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": bool(multiplied_by),
        "bfloat16_instructions": multiplied_by,
    }
    devices: list[dict[str, Any]] = [cpu]
    if torch.backends.mps.is_available():
        devices.insert(0, {"device": "mps", "name": system.processor()})
    if torch.cuda.is_available():
        devices = [_describe_gpu(number) for number in range(torch.cuda.device_count())] + devices
    return devices


def describe_folder(path: Path) -> dict[str, Any]:
    """Whether a folder exists, and the free bytes of the disk that it is or would be on."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return {"path": str(path.absolute()), "exists": path.exists(), "free": shutil.disk_usage(place).free}


def _describe_gpu(number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    return {
        "device": f"cuda:{number}",
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "bfloat16": properties.major >= 8,
    }
