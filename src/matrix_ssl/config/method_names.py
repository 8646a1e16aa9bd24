"""The names of the methods of a comparison: ``simclr``, ``own.py``, or with options, ``simclr:temperature=0.5``."""

import re
from collections.abc import Iterable, Mapping

from matrix_ssl.errors import ConfigError

_OPTION = re.compile(r":(?=\w+=)")  # the colon before an option


def split_name(method: str) -> tuple[str, dict[str, str]]:
    """A method's name or file, and the text of the options that are its own, by name.

    Raises:
        ConfigError: an option is given twice.
    """
    name, *texts = _OPTION.split(method)
    options: dict[str, str] = {}
    for option, text in (each.split("=", 1) for each in texts):
        if option in options:
            raise ConfigError(f"{method!r} gives {option} twice: remove one, or name two methods to compare both.")
        options[option] = text
    return name, options


def join_name(name: str, options: Mapping[str, str]) -> str:
    """The inverse of ``split_name``."""
    return ":".join([name, *(f"{option}={text}" for option, text in options.items())])


def file_name(method: str) -> str:
    """The name of a method, for a file without its folders."""
    name, options = split_name(method)
    return join_name(_last_part(name) if name.endswith(".py") else name, options)


def short_name(method: str) -> str:
    """The name of a method, for a file without its folders and extension."""
    name, options = split_name(method)
    return join_name(_last_part(name).removesuffix(".py") or name, options)


def folder_name(method: str) -> str:
    """The name of a method's folder: its short name with a hyphen before each option."""
    name, *options = _OPTION.split(short_name(method))
    return "-".join([name, *(re.sub(r"[^\w.=-]+", "-", option) for option in options)])


def method_names(methods: Iterable[str]) -> dict[str, str]:
    """Names to show, which are distinct: short ones, or with the whole path where these coincide."""
    unique = list(dict.fromkeys(methods))
    short = [short_name(method) for method in unique]
    names = [name if short.count(name) == 1 else method for method, name in zip(unique, short, strict=True)]
    return {method: ", ".join(_OPTION.split(name)) for method, name in zip(unique, names, strict=True)}


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]
