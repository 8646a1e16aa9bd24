"""Weights in the local caches of PyTorch and the Hugging Face hub; a hub is contacted only on request.

A cached file is used as it is, without asking whether the hub has a newer one. If a hub publishes a SHA-256, PyTorch in
the file's name and Hugging Face in the name of the file that its cache links to, the file must match it.
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
    """The file of a URL in PyTorch's cache, ``checkpoints`` of ``torch.hub.get_dir()``; None if it is absent.

    Raises:
        CheckpointError: it is damaged.
    """
    path = url_place(url)
    return _checked(path, _published(path)) if path.exists() else None


def fetch_url(url: str, *, what: str) -> Path:
    """Downloads a file into PyTorch's cache; ``what`` names it in the CheckpointError of a failed download."""
    path = url_place(url)

    def fetch() -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), _published(path) or None)
        return path

    return _fetched(fetch, what=what, source=url)


def find_in_hub(repository: str, names: Sequence[str]) -> Path | None:
    """The first of a repository's files ``names`` that is in the cache of the Hugging Face hub; None if none is.

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
    """Downloads the first of these files that a repository has; CheckpointError if it has none or there is no network.

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
    """The error for weights that are not cached and may not be downloaded; ``place`` is where they would be."""
    return CheckpointError(f"{what} is not on this machine, in {place}; add --download to fetch it from {source}.")


def url_place(url: str) -> Path:
    """The path of a URL's file in PyTorch's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def hub_place(repository: str) -> Path:
    """The folder of a repository in the Hugging Face hub's cache."""
    hub = import_extra("huggingface_hub", extra="huggingface")
    return Path(hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _published(path: Path) -> str:
    """The beginning of a file's SHA-256 that its name contains; empty if it contains none."""
    named = _DIGEST.search(path.name)
    return named[1] if named else ""


def _fetched(fetch: Callable[[], Any], *, what: str, source: str) -> Any:
    """The result of a download; whatever the libraries of the hubs raise becomes one CheckpointError."""
    try:
        return fetch()
    except Exception as error:  # from urllib, httpx and their connections
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
