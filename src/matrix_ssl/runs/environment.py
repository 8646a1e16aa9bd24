"""What a reader needs to judge a figure: device, precision, versions, hardware and commit."""

import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any


def environment(*, device: str, device_name: str, threads: int, processes: int) -> dict[str, Any]:
    """What a reader needs to judge a figure: versions, hardware, commit."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy", "matrix-ssl")}
    return {
        "python": platform.python_version(),
        **{name.replace("-", "_"): version for name, version in versions.items()},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": device,
        "device_name": device_name,
        "threads": threads,
        "processes": processes,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """Commit of the source tree this package runs from, marked when files differ; None for an installed package."""
    here = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        inside = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=here, capture_output=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if inside.returncode == 0 else None
