"""Self-supervised methods, one file each. A file in this folder, or any Python file's path, needs no registration."""

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from matrix_ssl.config.method_names import split_name
from matrix_ssl.config.untrusted import is_file
from matrix_ssl.errors import ConfigError, did_you_mean
from matrix_ssl.methods._base import Method, StepOutput, TeacherMethod, check_options
from matrix_ssl.methods._contract import check_output, check_storable, create_method

__all__ = [
    "Method",
    "StepOutput",
    "TeacherMethod",
    "check_output",
    "complete_options",
    "create_method",
    "describe_method",
    "find_method",
    "list_methods",
    "option_defaults",
    "register_method",
]

_CLASSES: dict[str, type[Method]] = {}  # classes that programs registered, by the name that a run records


class _Loader(SourceFileLoader):
    """Leaves no ``__pycache__`` next to the user's file."""

    def set_data(self, path: Any, data: Any, *, _mode: int = 0o666) -> None:
        """Does nothing."""


def list_methods() -> list[str]:
    """The names of this package's methods."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def register_method(method: type[Method]) -> str:
    """Registers a program's method class in this process; returns ``MODULE:CLASS``, or the name of a built-in method.

    Raises:
        ConfigError: ``method`` is not a subclass of Method.
    """
    if not (inspect.isclass(method) and issubclass(method, Method)):
        raise ConfigError(
            f"method={method!r}: expected a name, a Python file or a subclass of matrix_ssl.methods.Method."
        )
    package, _, module = method.__module__.rpartition(".")
    if package == __name__ and module in list_methods():
        return module
    name = f"{method.__module__}:{method.__qualname__}"
    _CLASSES[name] = method
    return name


def find_method(name: str) -> type[Method]:
    """The method class for a built-in method's name, the path of a Python file, or a name from ``register_method``.

    Raises:
        ConfigError: there is no such method, or the file cannot be executed or does not define exactly one method.
    """
    if name in _CLASSES:
        return _CLASSES[name]
    if name.endswith(".py"):
        file = os.path.expanduser(name)  # noqa: PTH111, which fails where there is no such home folder
        if not is_file(file):
            raise ConfigError(f"method.name={name!r}: there is no such file.")
        title = f"matrix_ssl_method_{Path(name).stem}"
        spec = importlib.util.spec_from_file_location(title, file, loader=_Loader(title, file))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module  # dataclasses in the file look it up here
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"method.name={name!r}: {_where(error, file)}{type(error).__name__}: {error}") from error
    elif name in list_methods():
        module = importlib.import_module(f"{__name__}.{name}")
    elif options := split_name(name)[1]:
        settings = " ".join(f"--set method.{option}={value}" for option, value in options.items())
        raise ConfigError(f"method.name={name!r}: only a comparison names options like this; use {settings}.")
    elif ":" in name:
        raise ConfigError(
            f"method.name={name!r} is a class of a program: in Python, pass it as method= to matrix_ssl.pretrain."
        )
    else:
        raise ConfigError(f"method.name={name!r} is not a method.{did_you_mean(name, list_methods())}")
    classes = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Method)]
    methods = [value for value in classes if value.__module__ == module.__name__]
    if len(methods) != 1:
        raise ConfigError(f"method.name={name!r}: expected one subclass of Method in the file, found {len(methods)}.")
    return methods[0]


def _where(error: BaseException, file: str) -> str:
    """The last line of the file in an error's traceback, as a prefix; empty for an error that states its own place."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"line {lines[-1]}: " if lines else ""


def describe_method(name: str) -> str:
    """The docstring of a method's file: idea, formula and paper. Raises the same errors as ``find_method``."""
    return inspect.getdoc(sys.modules[find_method(name).__module__]) or f"{name}: no description"


def option_defaults(method: type[Method]) -> dict[str, Any]:
    """A method's options with their defaults; ``inspect.Parameter.empty`` for an option without a default."""
    parameters = inspect.signature(method.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def complete_options(method: type[Method], options: Mapping[str, Any]) -> dict[str, Any]:
    """Every keyword of a method's constructor with its value: the checked one from ``options``, or the default.

    Raises:
        ConfigError: an option is unknown, has the wrong type, or is missing and has no default.
    """
    keywords = option_defaults(method)
    unknown = [name for name in options if name not in keywords]
    if unknown:
        raise ConfigError(f"Unknown setting 'method.{unknown[0]}'.{did_you_mean(unknown[0], keywords)}")
    for name, default in keywords.items():
        if name not in options and default is inspect.Parameter.empty:
            raise ConfigError(f"method.{name} has no default: give it with --set method.{name}=VALUE.")
    checked = check_options(method.__init__, options)
    complete = {k: checked.get(k, default) for k, default in keywords.items()}
    check_storable(complete)
    return complete
