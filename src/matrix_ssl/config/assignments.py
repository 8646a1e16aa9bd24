"""Applies ``key=value`` to settings, converts nested values to settings and back, and lists differences."""

import dataclasses
import difflib
import functools
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from matrix_ssl.config.validation import check_type
from matrix_ssl.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings")

_RENAMED_GROUPS = {"view1": "views.0", "view2": "views.1"}  # earlier versions' names, on the command line

Assignment = str | tuple[str, Any]  # "key=value", or a key and a value of any type; keys are dotted


def override(settings: Settings, assignments: Iterable[Assignment]) -> Settings:
    """Applies assignments to a dataclass of settings; the last one for a key wins.

    A number in a key is an index into a list of groups, as in ``views.0.flip``; the index after the last one adds a
    group, a copy of the last.

    Raises:
        ConfigError: an assignment has no ``=``, its key is unknown, or its value has the wrong type or is out of range.
    """
    values = dataclasses.asdict(settings)  # type: ignore[call-overload]
    values = {name: list(value) if _holds_groups(value) else value for name, value in values.items()}
    for assignment in assignments:
        key, value = split_assignment(assignment) if isinstance(assignment, str) else assignment
        _assign(values, key, value)
    return build(type(settings), values)


def split_assignment(assignment: str) -> tuple[str, str]:
    """Key and text of ``key=value``; raises ConfigError if there is no key or no ``=``."""
    key, separator, text = (part.strip() for part in assignment.partition("="))
    if not separator or not key:
        raise ConfigError(f"--set {assignment!r}: write key=value, for example epochs=50.")
    return key, text


def check_agreement(assignments: Iterable[Assignment], options: Mapping[str, tuple[str, Any]]) -> None:
    """Refuses an assignment that contradicts an option with the same meaning.

    Args:
        options: for each setting's key, the option's name as the user knows it and its value; None: not given.

    Raises:
        ConfigError: both are given and differ.
    """
    for assignment in assignments:
        key, value = split_assignment(assignment) if isinstance(assignment, str) else assignment
        option, given = options.get(key, ("", None))
        if given is not None and _text(value) != _text(given):
            said = f"{key}={_text(value)} and {option} {_text(given)}"
            raise ConfigError(f"{said} contradict each other: give one of them.")


def _text(value: Any) -> str:
    """A value as an assignment writes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def build(cls: type[Settings], values: Mapping[str, Any], prefix: str = "") -> Settings:
    """Builds a dataclass of settings from nested plain values by name; text is parsed, and defaults fill the rest.

    ``prefix`` is the dotted key of the group with a trailing dot, for messages.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    kind: Any = cls  # mypy takes a class with unhashable instances for an unhashable class
    hints = _hints(kind)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}={values!r}: expected a group of settings: {', '.join(hints)}.")
    arguments = {}
    for name, value in values.items():
        key = prefix + name
        if name not in hints:
            raise ConfigError(f"Unknown setting {key!r}.{did_you_mean(key, [prefix + hint for hint in hints])}")
        arguments[name] = _value(hints[name], value, key)
    return cls(**arguments)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _value(hint: Any, value: Any, key: str) -> Any:
    """A value of an annotated type: a group of settings, a tuple of such groups, or anything else."""
    member: Any = next(iter(get_args(hint)), None)
    is_group, is_list = (isinstance(kind, type) and dataclasses.is_dataclass(kind) for kind in (hint, member))
    if is_group:
        return build(hint, value, key + ".")
    if not is_list:
        return check_type(value, hint, key)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key}={value!r}: expected a list of groups of settings.")
    return tuple(
        group if isinstance(group, member) else build(member, group, f"{key}.{place}.")
        for place, group in enumerate(value)
    )


def changes(old: Mapping[str, Any], new: Mapping[str, Any], *, but: Collection[str]) -> list[str]:
    """Lines ``key: old -> new`` for the values of nested mappings that differ, except where ``but`` names the key.

    Tuples equal lists, as in JSON. A digest that ``old``, from an earlier version, lacks agrees with any.
    """
    before, after = (
        {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(values)}
        for values in (old, new)
    )
    unknown = {key for key in after if key.endswith("digest") and not before.get(key)}
    keys = [key for key in sorted(before.keys() | after.keys()) if key not in {*but, *unknown}]
    different = [key for key in keys if before.get(key) != after.get(key)]
    notes = {key: " (the data are different)" for key in different if key.endswith("digest")}
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}{notes.get(key, '')}" for key in different]


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as pairs of a dotted key and a plain value."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if _holds_groups(value):
            value = {str(place): group for place, group in enumerate(value)}
        pairs += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def _holds_groups(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(group, Mapping) for group in value)


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    if not isinstance(key, str):
        raise ConfigError(f"Unknown setting {key!r}: a setting is named by text, such as 'epochs'.")
    first, dot, rest = key.partition(".")
    if first not in values and first in _RENAMED_GROUPS:
        key = _RENAMED_GROUPS[first] + dot + rest
    *groups, leaf = key.split(".")
    target: Any = values
    for group in groups:
        if isinstance(target, list):
            target = _at(target, group, key)
        else:
            target = target.get(group) if isinstance(target, dict) else None
    target = target if isinstance(target, dict) else {}
    if leaf in target and not isinstance(target[leaf], dict):
        target[leaf] = value
    elif "options" in target and leaf != "options":  # of a method, whose class knows their names
        target["options"] = {**target["options"], leaf: value}
    else:
        known = [name.replace("method.options.", "method.") for name, _ in flatten(values)]
        near = _nearest(key, known)
        of_method = "method" in values and key not in values and "." not in key and "Did you mean" not in near
        hint = f" An option of the method is written 'method.{key}'." if of_method else ""
        raise ConfigError(f"Unknown setting {key!r}.{hint}{near}")


def _at(groups: list[dict[str, Any]], place: str, key: str) -> dict[str, Any] | None:
    """The group of settings at an index of a list; the one after the last is new, a copy of it."""
    if not place.isdecimal():
        return None
    if int(place) > len(groups):
        name = key.partition(".")[0]
        raise ConfigError(
            f"Unknown setting {key!r}: {name} has {len(groups)} groups, the next one is {name}.{len(groups)}."
        )
    if int(place) == len(groups):
        groups.append(dict(groups[-1]))
    return groups[int(place)]


def _nearest(key: str, known: list[str]) -> str:
    """Like ``did_you_mean``, but a key without its group finds the settings of that name in every group.

    If none is close, the settings of the key's group, or those outside groups and the groups, ``data.*``.
    """
    text, name = did_you_mean(key, known), key.rpartition(".")[2]
    near = difflib.get_close_matches(name, {other.rpartition(".")[2] for other in known}, n=1)
    same = [repr(other) for other in known if other.rpartition(".")[2] in near]
    if "Did you mean" in text or not known:
        return text
    if same:
        return f" Did you mean {' or '.join(same[:3])}?"
    group = key[: key.rfind(".") + 1]
    listed = [other for other in known if group and other.startswith(group)]
    return f" Known: {', '.join(listed or sorted({one.split('.')[0] + '.*' * ('.' in one) for one in known}))}."
