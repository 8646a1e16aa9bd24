"""Options of methods in a comparison, ``method.OPTION=VALUE``: each applies to the methods that have it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matrix_ssl.config import RunConfig, split_assignment
from matrix_ssl.errors import ConfigError, did_you_mean
from matrix_ssl.methods import complete_options, find_method, option_defaults


def divide(assignments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Splits assignments into those for all runs and the text of method options by name; the last of a name wins.

    Raises:
        ConfigError: an assignment has no ``=``.
    """
    shared, options = [], {}
    for assignment in assignments:
        key, text = split_assignment(assignment)
        group, _, name = key.partition(".")
        if group == "method" and name not in ("name", "options"):
            options[name] = text
        else:
            shared.append(assignment)
    return shared, options


def read_options(options: Mapping[str, str], methods: Sequence[str]) -> dict[str, Any]:
    """The values of options by name, converted to the types that the methods with these options declare.

    Raises:
        ConfigError: none of the methods has an option, or a value has the wrong type or is out of range.
    """
    values: dict[str, Any] = {}
    known: set[str] = set()
    for name in methods:
        kind = find_method(name)
        own = options.keys() & option_defaults(kind)
        complete = complete_options(kind, {option: options[option] for option in own})
        values |= {option: complete[option] for option in own}
        known |= complete.keys()
    for option in options:
        if option not in values:
            near = did_you_mean(option, known)
            raise ConfigError(f"Unknown setting 'method.{option}': none of the methods has this option.{near}")
    return {option: values[option] for option in options}


def with_options(base: RunConfig, options: Mapping[str, Any]) -> tuple[RunConfig, dict[str, Any]]:
    """The run with the options that its own method has, and the remaining options."""
    known = option_defaults(find_method(base.method.name))
    own = {name: value for name, value in options.items() if name in known}
    method = dataclasses.replace(base.method, options={**base.method.options, **own})
    return dataclasses.replace(base, method=method), {k: v for k, v in options.items() if k not in own}


def lacking(options: Mapping[str, Any], methods: Sequence[str]) -> Iterator[str]:
    """A sentence about each option that some of the methods lack."""
    for option, value in options.items():
        having = [Path(name).stem for name in methods if option in option_defaults(find_method(name))]
        if len(having) < len(methods):
            yield f"method.{option}={value} is for {', '.join(having)}: the other methods have no such option."
