"""What a reader needs to judge a number: command, device, versions, hardware and commit."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from matrix_ssl.config import system
from matrix_ssl.runs.terminal import redact_words


def environment(*, device: str, device_name: str, threads: int, processes: int) -> dict[str, Any]:
    """Versions, hardware and commit."""
    own = versions(("torch", "torchvision", "numpy", "matrix-ssl"))
    return {
        "python": platform.python_version(),
        **{name.replace("-", "_"): version for name, version in own.items()},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": system.processor(),
        "device": device,
        "device_name": device_name,
        "threads": threads,
        "processes": processes,
        "commit": _commit(),
    }


def versions(packages: Collection[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed, by name."""
    return {
        name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name.replace("-", "_"))
    }


def command() -> list[str]:
    """The words that start this program again, with ``torchrun`` if several processes run on this machine."""
    program = Path(sys.argv[0])
    ours = program.name == "matrix-ssl" or program.parts[-2:] == ("matrix_ssl", "__main__.py")
    if processes := os.environ.get("LOCAL_WORLD_SIZE"):
        launch = ["torchrun", "--nproc-per-node", processes, *(["-m", "matrix_ssl"] if ours else [sys.argv[0]])]
    else:
        launch = ["matrix-ssl"] if ours else ["python", sys.argv[0]]
    return [*launch, *redact_words(sys.argv[1:])]


def _commit() -> str | None:
    """The commit of the source tree that this package runs from, marked if files differ; None if it is installed."""
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
