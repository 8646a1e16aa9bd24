"""The caches of PyTorch and of the Hugging Face hub as their libraries leave them, and no network."""

import hashlib
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Caches:
    """Two caches in a folder; every attempt to reach a network is refused and counted."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.torch, self.hub = folder / "torch" / "checkpoints", folder / "hub"
        self.attempts: list[Any] = []
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(self.torch.parent))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(self.hub))
        monkeypatch.setattr("time.sleep", lambda _: None)  # the hub's library waits before it tries again

        def refuse(*arguments: Any, **_: Any) -> None:
            self.attempts.append(arguments)
            raise OSError(101, "Network is unreachable")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    def put(self, repository: str, files: dict[str, bytes]) -> Path:
        """Files as a download leaves them: content under its SHA-256, and links to it in the snapshot of a commit."""
        root = self.hub / f"models--{repository.replace('/', '--')}"
        snapshot = root / "snapshots" / COMMIT
        for folder in (snapshot, root / "blobs", root / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text(COMMIT)
        for name, content in files.items():
            blob = root / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / name).symlink_to(blob)
        return snapshot

    def interrupt(self, repository: str, name: str) -> None:
        """Cuts a file, as a download that was killed and taken for complete."""
        blob = self.put(repository, {}).joinpath(name).resolve()
        blob.write_bytes(blob.read_bytes()[:-100])

    def files(self) -> list[Path]:
        """Everything in both caches."""
        return sorted(path for root in (self.torch, self.hub) for path in root.rglob("*"))
