"""Options of methods in a comparison, ``method.OPTION=VALUE``: each applies to the methods that have it.

A method that is named with a value of its own, ``NAME:OPTION=VALUE``, keeps it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matrix_ssl.config import RunConfig, split_assignment
from matrix_ssl.config.method_names import short_name, split_name
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
        ConfigError: none of the methods has an option, or all have a value of their own, or a value has the wrong type
            or is out of range.
    """
    values: dict[str, Any] = {}
    known: set[str] = set()
    for name in methods:
        plain, fixed = split_name(name)
        kind = find_method(plain)
        own = (options.keys() & option_defaults(kind)) - fixed.keys()
        complete = complete_options(kind, {option: options[option] for option in own})
        values |= {option: complete[option] for option in own}
        known |= complete.keys()
    for option in options:
        if option in known and option not in values:
            raise ConfigError(
                f"--set method.{option}: every method with this option has a value of its own; remove it."
            )
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
    """A sentence about each option that some of the methods lack or have their own value of."""
    for option, value in options.items():
        having = [method for method in methods if option in option_defaults(find_method(split_name(method)[0]))]
        taking = [short_name(method) for method in having if option not in split_name(method)[1]]
        own = "" if len(taking) == len(having) else ", or a value of their own"
        if len(taking) < len(methods):
            yield f"method.{option}={value} is for {', '.join(taking)}: the other methods have no such option{own}."
