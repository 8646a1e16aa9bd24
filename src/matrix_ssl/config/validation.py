"""Settings checked by pydantic, with a one-sentence message for a mistake: key, value and what is expected."""

import contextlib
import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

import pydantic.dataclasses
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from matrix_ssl.config.untrusted import parse_json
from matrix_ssl.errors import ConfigError, did_you_mean

Checked = TypeVar("Checked")
Fraction = Annotated[float, Ge(0), Le(1)]
OpenFraction = Annotated[float, Gt(0), Lt(1), "a number above 0 and below 1"]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]

_BOOLEANS = ("true", "false", "True", "False")  # the texts that are read as booleans; "yes" and "1" are not
_NAMES = {
    int: "an integer", float: "a finite number", str: "text", bool: "true or false", type(None): "none",
    Any: "any value",
}  # fmt: skip


@dataclass_transform(frozen_default=True)
def settings(cls: type[Checked]) -> type[Checked]:
    """Makes a class a frozen dataclass with fields of checked type and range, such as ``epochs: PositiveInt = 100``.

    Checks across several fields belong in ``__post_init__``. Building an instance raises ConfigError for an unknown or
    missing field, a wrong type, and a value out of range.
    """
    strict = ConfigDict(extra="forbid", allow_inf_nan=False)
    checked: Any = pydantic.dataclasses.dataclass(cls, frozen=True, config=strict)
    initialise = checked.__init__

    @functools.wraps(initialise)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            initialise(self, *args, **kwargs)
        except ValidationError as error:
            hints = get_type_hints(cls, include_extras=True)
            values = dict(zip(hints, args, strict=False)) | kwargs
            name = error.errors(include_url=False)[0]["loc"][0]
            name = list(hints)[name] if isinstance(name, int) else name
            if name not in hints:
                raise ConfigError(f"Unknown setting {name!r}.{did_you_mean(name, hints)}") from None
            if name not in values:
                raise ConfigError(f"{name} is missing: expected {expectation(hints[name])}.") from None
            raise _refused(values[name], hints[name], name) from None

    checked.__init__ = checked_init
    return checked


def check_type(value: Any, expected: Any, key: str) -> Any:
    """Returns ``value`` as a number, bool, text, Literal, tuple or union, within its range if the type is Annotated.

    Text is parsed: commas separate the values of a tuple, semicolons the tuples of a tuple, ``none`` is None, and text
    that begins with a bracket is JSON where a list or a dictionary is expected. Raises ConfigError if it does not fit.
    """
    plain, origin = _plain(expected), get_origin(_plain(expected))
    if origin in (Union, types.UnionType) and isinstance(value, str):
        for member in get_args(plain):
            with contextlib.suppress(ConfigError):
                return check_type(value, member, key)
        raise _refused(value, expected, key)
    try:
        result = _adapter(expected).validate_python(_parse(value, plain, origin))
    except ValidationError:
        raise _refused(value, expected, key) from None
    if isinstance(result, bool) != isinstance(value, bool) and value not in _BOOLEANS:
        raise _refused(value, expected, key)  # pydantic takes true for 1, and "yes" for true
    if isinstance(result, int) and not -(2**63) <= result < 2**63:  # a run folder with it could not be read back
        raise ConfigError(f"{key}={value!s:.40}: expected an integer of at most {2**63 - 1}.")
    return result


def expectation(expected: Any) -> str:
    """Describes the values that a type and its range allow: ``an integer of at least 1``.

    Text among the annotations of a type, ``Annotated[tuple[float, ...], check, "numbers that rise"]``, is used as is.
    """
    plain, members, marks = _plain(expected), get_args(_plain(expected)), getattr(expected, "__metadata__", ())
    origin = get_origin(plain)
    if words := [mark for mark in marks if isinstance(mark, str)]:
        return words[0]
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(expectation, members))
    if origin in (tuple, list):
        number = "" if members[-1] is Ellipsis or origin is list else f"{len(members)} "
        between = "semicolons" if get_origin(members[0]) is tuple else "commas"
        return f"{number}values separated by {between}, each {expectation(members[0])}"
    if dict in (origin, plain):
        return "a JSON object"
    if origin is Mapping or dataclasses.is_dataclass(plain):
        return "a group of settings"
    bounds = {name: getattr(mark, name) for mark in marks for name in ("ge", "le", "gt") if hasattr(mark, name)}
    low, high, above = map(bounds.get, ("ge", "le", "gt"))
    if plain is int and above is not None:
        low, above = above + 1, None
    name = "a number" if plain is float and high is not None else _NAMES.get(plain, str(plain))
    if above is not None:
        return f"{name} above {above:g}" + (f" and at most {high:g}" if high is not None else "")
    if low is None:
        return name
    return f"{name} from {low} to {high}" if high is not None else f"{name} of at least {low}"


def _plain(expected: Any) -> Any:
    return get_args(expected)[0] if get_origin(expected) is Annotated else expected


@functools.cache
def _adapter(expected: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(expected, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
    except pydantic.PydanticUserError:  # a dataclass or a model, which has its own configuration
        return TypeAdapter(expected)


def _parse(value: Any, plain: Any, origin: Any) -> Any:
    """Text as what pydantic reads; everything else, and text that pydantic reads by itself, is unchanged."""
    if not isinstance(value, str):
        return value
    if plain is type(None):
        return None if value == "none" else value
    if origin is Literal:
        return next((choice for choice in get_args(plain) if str(choice) == value), value)
    if value.startswith(("{", "[")) and (plain in (dict, list) or origin in (dict, list)):
        with contextlib.suppress(ValueError):
            return parse_json(value)
        return value
    if origin in (tuple, list):
        inner = get_args(plain)[0]
        text = value.strip("()[] ")
        parts = text.split(";" if get_origin(inner) is tuple else ",") if text else []
        return [_parse(part.strip(), _plain(inner), get_origin(inner)) for part in parts]
    return value


def _refused(value: Any, expected: Any, key: str) -> ConfigError:
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    choices = get_args(expected) if get_origin(expected) is Literal else ()
    near = did_you_mean(str(value), map(str, choices)).partition(" Known:")[0]  # all of them are named before it
    return ConfigError(f"{key}={text}: expected {expectation(expected)}.{near}")
