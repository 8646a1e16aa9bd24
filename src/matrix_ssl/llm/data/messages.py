"""Conversations as people store them: OpenAI's messages, ShareGPT's, contents in parts, and calls of tools."""

from collections.abc import Mapping, Sequence
from typing import Any

from matrix_ssl.config.untrusted import parse_json
from matrix_ssl.errors import DataError

Message = dict[str, Any]  # role and content, both texts, and what else a chat template reads of it

_ROLES = {  # in any letter case; others are left to chat templates
    **dict.fromkeys(("user", "human"), "user"), "system": "system", "tool": "tool",
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}  # fmt: skip
_MESSAGE = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})  # keys of one, at least
_FOR_TEMPLATES = ("tool_calls", "reasoning_content", "thinking")  # of a message, besides role and content
_FOR_TOOLS = ("name", "tool_call_id")  # of a message with a tool's result
_TEXTS = (None, "text", "input_text", "output_text")  # types of parts
_SHOWN = 80  # characters of a value in an error
_EXPECTED = "expected a list of messages, each with role and content (or from and value)"


def is_conversation(value: Any) -> bool:
    """Whether a value is meant as messages.

    They are in a list, in its JSON text or, as some versions of datasets write, in a dictionary of lists. A JSON text
    may be an answer instead, such as one that lists journeys from one place to another.
    """
    is_text = isinstance(value, str)
    if is_text and value.lstrip().startswith("["):
        value = _parsed(value)
    keys = value[0] if isinstance(value, list) and value else value
    if not isinstance(keys, dict):
        return False
    return any(names <= keys.keys() for names in _MESSAGE) if is_text else "role" in keys or "from" in keys


def read_messages(value: Any, where: str) -> list[Message]:
    """Messages, with role and content, or with from and value as in ShareGPT; a JSON text of them is read, too.

    A content may be a list of parts of text, which are joined. Calls of tools have arguments as objects, as chat
    templates expect them; those of OpenAI are JSON texts. Entries that are None are left out: tables have them for
    what a message lacks.

    Raises:
        DataError: the value is not a list of messages, or a message has no role or no text; it begins with ``where``.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, dict) and all(isinstance(x, list) for x in value.values()):
        if len(lengths := set(map(len, value.values()))) > 1:
            raise DataError(f"{where} has lists of {' and '.join(map(str, sorted(lengths)))} entries; {_EXPECTED}.")
        value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} is {shown(value)}; {_EXPECTED}.")
    return [_message(one, f"{where}, message {number}") for number, one in enumerate(value, 1)]


def read_tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """The descriptions of tools next to a conversation, a list or its JSON text; empty if there are none."""
    if isinstance(value, str) and value.strip():
        value = _parsed(value)
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{where} is {shown(value)}; expected a list of descriptions of tools, or its JSON text.")
    return tuple(_without_none(one) for one in value)


def up_to_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages without those after the last answer, such as a question without one; all if there is no answer."""
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: answers[-1] + 1] if answers else messages


def last_answer(messages: Sequence[Message], where: str) -> Message:
    """The last message; DataError if it is not an answer to another one."""
    last = messages[-1]
    if last["role"] != "assistant":
        raise DataError(
            f"{where} ends with a message of {last['role']!r}; expected an answer of the assistant (gpt): remove what "
            f"follows the last answer."
        )
    if not last.get("weight", 1):
        raise DataError(f"{where} ends with an answer of weight 0, which is not to be learned: remove it, or the row.")
    if not last["content"].strip() and not last.get("tool_calls"):
        raise DataError(f"{where} ends with an empty answer; write or remove it.")
    if len(messages) < 2:
        raise DataError(f"{where} has an answer and no message before it: write the question.")
    return last


def tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names in descriptions or calls of tools."""
    inner = (one.get("function", one) for one in tools)
    return [name for one in inner if isinstance(one, Mapping) and isinstance(name := one.get("name"), str)]


def shown(value: Any) -> str:
    """A value in an error."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _message(one: Any, where: str) -> Message:
    if not isinstance(one, dict):
        raise DataError(f"{where} is {shown(one)}; {_EXPECTED}.")
    role, content = (one["from"], one.get("value")) if "from" in one else (one.get("role"), one.get("content"))
    if not isinstance(role, str):
        raise DataError(f"{where} has the keys {', '.join(map(str, one))}; {_EXPECTED}.")
    role = _ROLES.get(role.lower(), role)
    kept = (*_FOR_TEMPLATES, *(_FOR_TOOLS if role == "tool" else ()))
    message = {key: _without_none(one[key]) for key in kept if one.get(key)}
    if "function_call" in one and one["function_call"] is not None:
        raise DataError(f"{where} has a function_call, which chat templates do not know: write it as tool_calls.")
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"], where)
    if role == "assistant" and one.get("weight") == 0:  # as OpenAI marks what is not to be learned
        message["weight"] = 0
    if content is None and "tool_calls" in message:
        content = ""
    return {"role": role, "content": _text(content, where), **message}


def _text(content: Any, where: str) -> str:
    """A content, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{where} has the content {shown(content)}; expected a text, or a list of parts of text.")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXTS or not isinstance(text, str):
            what = f"of type {kind!r}" if kind not in _TEXTS else shown(part)
            raise DataError(f"{where} has a part {what}, but only text can be learned: remove it, or the row.")
        texts.append(text)
    return "".join(texts)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or len(tool_names([one for one in calls if isinstance(one, dict)])) < len(calls):
        raise DataError(
            f"{where} has the tool_calls {shown(calls)}; expected a list of calls, each with a function and its name."
        )
    for call in calls:
        function = call.get("function", call)
        if isinstance(arguments := function.get("arguments"), str) and isinstance(read := _parsed(arguments), dict):
            function["arguments"] = read
    return calls


def _parsed(text: str) -> Any:
    """The value of a JSON text, or the text itself if it is not one."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def _without_none(value: Any) -> Any:
    """A copy of nested lists and dictionaries without entries that are None."""
    if isinstance(value, dict):
        return {key: _without_none(x) for key, x in value.items() if x is not None}
    return [_without_none(x) for x in value] if isinstance(value, list) else value
