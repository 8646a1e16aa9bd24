"""Weights in the local caches of PyTorch and of the Hugging Face hub; a hub is asked for them only on request.

What a cache holds is used as it is, without asking whether the hub has a newer file. Where a hub publishes a SHA-256,
PyTorch's in the name of a file and Hugging Face's in that of the file that its cache links to, the file must have it.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from matrix_ssl.config.untrusted import file_sha256, why
from matrix_ssl.errors import CheckpointError, import_extra

_DIGEST = re.compile(r"-([0-9a-f]{8,})\.")


def find_url(url: str) -> Path | None:
    """The file of an address in PyTorch's cache, ``checkpoints`` of ``torch.hub.get_dir()``; None where it is absent.

    Raises:
        CheckpointError: it is damaged.
    """
    path = url_place(url)
    return _checked(path, _published(path)) if path.exists() else None


def fetch_url(url: str, *, what: str) -> Path:
    """Fetches a file into PyTorch's cache; ``what`` names it in the CheckpointError of one that cannot be fetched."""
    path = url_place(url)

    def fetch() -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), _published(path) or None)
        return path

    return _fetched(fetch, what=what, source=url)


def find_in_hub(repository: str, names: Sequence[str]) -> Path | None:
    """The first of these files of a repository that the cache of the Hugging Face hub has; None where it has none.

    Raises:
        CheckpointError: the file is damaged.
        MissingExtra: huggingface_hub is not installed.
    """
    hub = import_extra("huggingface_hub", extra="huggingface")
    for name in names:
        path = hub.try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            blob = Path(path).resolve().name  # a large file is stored under its SHA-256
            return _checked(Path(path), blob if re.fullmatch(r"[0-9a-f]{64}", blob) else "")
    return None


def fetch_from_hub(repository: str, names: Sequence[str], *, what: str) -> Path:
    """Fetches the first of these files that a repository has; CheckpointError where it has none or there is no network.

    ``what`` names the file in messages.
    """
    hub = import_extra("huggingface_hub", extra="huggingface")
    source = f"https://huggingface.co/{repository}"
    for name in names:
        try:
            _fetched(partial(hub.hf_hub_download, repository, name), what=what, source=source)
        except CheckpointError as error:
            if isinstance(error.__cause__, hub.errors.RemoteEntryNotFoundError):
                continue
            raise
        if path := find_in_hub(repository, [name]):
            return path
    raise CheckpointError(f"{what} cannot be downloaded: {source} has no {' or '.join(names)}.")


def absent(what: str, *, source: str, place: Path | str) -> CheckpointError:
    """The error for weights that no cache has, and that may not be fetched; ``place`` is where they would be."""
    return CheckpointError(f"{what} is not on this machine, in {place}; add --download to fetch it from {source}.")


def url_place(url: str) -> Path:
    """The place of an address in PyTorch's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def hub_place(repository: str) -> Path:
    """The folder of a repository in the cache of the Hugging Face hub."""
    hub = import_extra("huggingface_hub", extra="huggingface")
    return Path(hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _published(path: Path) -> str:
    """The beginning of a file's SHA-256 that its name holds; empty where it holds none."""
    named = _DIGEST.search(path.name)
    return named[1] if named else ""


def _fetched(fetch: Callable[[], Any], *, what: str, source: str) -> Any:
    """The result of a download; whatever the libraries of the hubs raise becomes one CheckpointError."""
    try:
        return fetch()
    except Exception as error:  # of urllib, httpx and their connections
        root: BaseException = error
        while cause := root.__cause__ or root.__context__:
            root = cause
        lines = str(root).strip().splitlines()
        reason = lines[0].rstrip(". ") if lines else type(root).__name__
        raise CheckpointError(f"{what} cannot be downloaded from {source}: {reason}.") from error


def _checked(path: Path, published: str) -> Path:
    if published:
        try:
            digest = file_sha256(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {why(error)}; remove it and download it again.") from error
        if not digest.startswith(published):
            raise CheckpointError(
                f"{path} is damaged, perhaps by an interrupted download: its SHA-256 does not begin with "
                f"{published[:8]}; remove it and download it again."
            )
    return path
