"""Untrusted text on its way to a terminal or a file: without control characters, passwords and tokens.

Names of files, classes and columns, and messages of libraries, may contain anything. A terminal would execute an escape
sequence, and logs would keep a password in a URL or a token in a setting.
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_HIDDEN = "***"
_ADDRESS = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s/@:]*:)[^\s/]*@", re.IGNORECASE)
_NAME = r"(?:token|password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|credentials?)"
_WORD = (  # before "token": a token of a text or a model, not of a service
    r"(?:bos|eos|pad|padding|cls|class|sep|unk|mask|image|img|video|audio|speech|vision|bo[ivas]|eo[ivas]|start|end|stop"
    r"|begin|special|soft|dist|distillation|register|fim|prefix|suffix|middle|newline|patch|prompt|system|per|next|last"
    r"|first|new|max|min|num|each|every)"
)
_SETTING = re.compile(
    rf"(?P<before>(?<![\w.-])(?<!\d\s)(?!(?:[\w.-]*[_.-])?{_WORD}[_-]?token\b)[\w.-]*{_NAME}[\"']?\s*[=:]\s*[\"']?)"
    r"(?!(?:true|false|null|none)\b)(?P<secret>[^\s\"'&,;]+)",  # "use_mask_token": false is not a secret
    re.IGNORECASE,
)
_KNOWN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})\b")
_SHORTEST = 6  # characters of a variable's value that is searched for in texts


def printable(text: str) -> str:
    """The text with control characters, and those that change the writing direction, as escapes, ``\\x1b``.

    Line breaks and tabs are kept.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs") else _escape(letter)
        for letter in text
    )


def redact(text: str) -> str:
    """The text with ``***`` for passwords in URLs, values of settings that are named like a secret, and tokens.

    The value of an environment variable with such a name counts as a token, too.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and is_secret(name):
            text = text.replace(value, _HIDDEN)
    text = _ADDRESS.sub(rf"\g<before>{_HIDDEN}@", text)
    text = _SETTING.sub(rf"\g<before>{_HIDDEN}", text)
    return _KNOWN.sub(_HIDDEN, text)


def redact_values(value: Any) -> Any:
    """Nested plain values with all text redacted, and ``***`` for the text of a key that is named like a secret."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: _HIDDEN if isinstance(member, str) and is_secret(str(key)) else redact_values(member)
            for key, member in value.items()
        }
    return [redact_values(member) for member in value] if isinstance(value, (list, tuple)) else value


def redact_words(words: Sequence[str]) -> list[str]:
    """The words of a command line redacted, and ``***`` for one that follows an option named like a secret."""
    return [
        _HIDDEN if option.startswith("-") and "=" not in option and is_secret(option.lstrip("-")) else redact(word)
        for option, word in itertools.pairwise(["", *words])
    ]


def is_secret(name: str) -> bool:
    """Whether a setting or a variable of this name holds a secret."""
    return _SETTING.match(f"{name}=x") is not None


class Terminal(Console):
    """A rich console that shows text as plain text: no markup, no control characters, no secrets."""

    def __init__(
        self,
        file: IO[str] | None = None,
        *,
        stderr: bool = False,
        quiet: bool = False,
        soft_wrap: bool = False,
        width: int | None = None,
    ):
        super().__init__(
            file=file, stderr=stderr, quiet=quiet, soft_wrap=soft_wrap, width=width,
            highlight=False, markup=False, emoji=False,
        )  # fmt: skip

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it will be shown."""
        return super().render_str(redact(printable(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything that is shown; only rich's own may move the cursor."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(printable(part.text), part.style)


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
