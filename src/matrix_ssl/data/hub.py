"""Opening what the Hugging Face libraries read: code in a folder or in a repository on the hub never runs.

A configuration, tokenizer or model may name Python files stored with it (``auto_map``). By default, the libraries ask
on standard input whether to run them, and accept a ``y`` that happens to be there as an answer.
"""

import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from matrix_ssl.config.untrusted import open_file, parse_json, read_file, why
from matrix_ssl.errors import CheckpointError, DataError, MatrixSSLError, import_extra

_DIGITS = 40  # of an integer: transformers writes 1e30 as one
_PATIENCE = 5.0  # seconds for a connection to the hub
_SMALL_JSON = 2**20  # bytes; vocabularies are larger, and read by libraries that bound their depth
_SAVED = ("dataset_dict.json", "state.json")  # of several splits, and of one
_REFUSALS = ("trust_remote_code", "Dataset scripts are no longer supported")  # in the libraries' messages


def open_pretrained(opener: Callable[..., Any], source: Any, *, place: str, **options: Any) -> Any:
    """``opener(source, **options)`` of a configuration, tokenizer, processor or model, without code from its folder.

    ``place`` is its name in the CheckpointError raised if only its own code can open it.
    """
    error = CheckpointError(
        f"{place} needs Python code of its own (auto_map), which is never run: use a model and a tokenizer that "
        f"transformers itself implements, or convert this one to such a class and save it by save_pretrained."
    )
    check_pretrained(source)
    return _open(opener, source, options, error)


def check_pretrained(source: Any) -> None:
    """Raises CheckpointError for a local folder in which a library would block, read forever or choke on JSON.

    Every entry must be a regular file, a folder or a link to one of them, and the small JSON files must be bounded.
    """
    folder = Path(source) if isinstance(source, (str, Path)) else None
    if folder is None or not folder.exists():
        return
    try:
        for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
            if path.is_dir():
                continue
            with open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
            if path.suffix == ".json" and (size <= _SMALL_JSON or path.name.endswith("config.json")):
                parse_json(read_file(path), digits=_DIGITS)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {why(error)}.") from error


@contextmanager
def quiet_transformers(*, least: int | None = None) -> Iterator[Any]:
    """The package transformers, without progress bars and its own deprecation warnings until the block ends.

    Its messages below the ``logging`` level ``least`` are dropped; None leaves the level as it is.
    """
    transformers = import_extra("transformers", extra="llm")
    log = transformers.utils.logging
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity(level if least is None else least)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
            yield transformers
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk`` of the package ``datasets``, for ``load_from_disk``."""
    return any((folder / name).is_file() for name in _SAVED)


def open_dataset(opener: Callable[..., Any], source: str, *, place: str, **options: Any) -> Any:
    """``opener(source, **options)`` of a dataset; DataError if only its loading script can open it."""
    error = DataError(
        f"{place} needs Python code of its own (a loading script), which is never run: save the dataset as Parquet, "
        f"JSON or images in folders, or by save_to_disk, and open that."
    )
    check_pretrained(source)
    return _open(opener, source, options, error)


def _open(opener: Callable[..., Any], source: Any, options: dict[str, Any], refusal: MatrixSSLError) -> Any:
    with _at_once(source) as obstacle:
        try:
            return opener(source, trust_remote_code=False, **options)
        except (ValueError, RuntimeError, OSError) as error:
            if any(sentence in str(error) for sentence in _REFUSALS):
                raise refusal from error
            if obstacle and isinstance(error, OSError):  # others say what is wrong with what the cache holds
                raise type(refusal)(
                    f"{source} is not in the local cache, and {obstacle}: name a local folder, or download it on a "
                    f"machine with network access."
                ) from error
            raise


@contextmanager
def _at_once(source: Any) -> Iterator[str]:
    """Lets the libraries use only their caches if their hub cannot be reached: otherwise they try for a minute.

    Yields what keeps the hub from being asked, or an empty text; with a local folder or a proxy it does not check.
    """
    hub = sys.modules.get("huggingface_hub.constants")
    is_local = not isinstance(source, (str, Path)) or Path(source).exists()
    if hub is not None and not is_local and hub.HF_HUB_OFFLINE:
        yield "HF_HUB_OFFLINE keeps the hub from being asked"
        return
    if hub is None or is_local or getproxies() or _answers(_endpoint()):
        yield ""
        return
    settings = [
        (module, "HF_HUB_OFFLINE") for module in (hub, sys.modules.get("datasets.config")) if module is not None
    ]
    before = [getattr(module, name) for module, name in settings]
    try:
        for module, name in settings:
            setattr(module, name, True)
        yield f"the hub, {_endpoint()}, cannot be reached"
    finally:
        for (module, name), value in zip(settings, before, strict=True):
            setattr(module, name, value)


def _endpoint() -> str:
    return str(getattr(sys.modules.get("huggingface_hub.constants"), "ENDPOINT", "https://huggingface.co"))


def _answers(address: str) -> bool:
    """Whether a server accepts a connection within a few seconds."""
    parts = urlsplit(address)
    try:
        place = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
        with socket.create_connection(place, timeout=_PATIENCE):
            return True
    except OSError:
        return False
