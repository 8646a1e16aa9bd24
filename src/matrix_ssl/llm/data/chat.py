"""Chat templates of tokenizers, which are programs from an untrusted source: bounded in time and memory.

transformers runs them in Jinja's sandbox, which keeps them away from files but does not stop endless loops. Each
template is tried once in a process of its own with limited memory, and every use of it has a time limit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matrix_ssl.config import system
from matrix_ssl.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 2.0  # of computing, for one conversation
_MEMORY = 2**30  # bytes that the trial may use
_LONGEST = 2**22  # characters of one conversation
_GOOD, _BAD = b"+", b"-"
tried: dict[str, str] = {}  # what was wrong with a template in its trial; empty: nothing


def render(
    messages: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", *,
    tools: Sequence[Mapping[str, Any]] = (), add_generation_prompt: bool,
) -> str:  # fmt: skip
    """A conversation as text, by the tokenizer's template; DataError if anything is wrong with the template."""
    chat = [dict(message) for message in messages]
    options: dict[str, Any] = {"tools": [dict(tool) for tool in tools]} if tools else {}

    def text() -> str:
        written = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )
        return str(written)

    template = str(tokenizer.chat_template)
    if template not in tried:
        import jinja2.ext
        import jinja2.sandbox  # noqa: F401, before the time of the trial runs
        import transformers.utils.chat_template_utils  # noqa: F401

        tried[template] = _try_apart(text)
    if tried[template]:
        raise _refused(tried[template])
    try:
        with system.limited(SECONDS):
            result = text()
    except Exception as error:  # whatever its expressions raise
        raise _refused(_reason(error)) from error
    if len(result) > _LONGEST:
        raise _refused(f"its text is longer than {_LONGEST:,} characters")
    return result


def _refused(reason: str) -> DataError:
    return DataError(f"The tokenizer's chat template rejects a conversation: {reason}.")


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:500].rstrip(".")


def _try_apart(text: Callable[[], str]) -> str:
    """Runs a function in a copy of this process, with limits if the system has any; what went wrong, or nothing."""

    def attempt() -> bytes:
        try:
            text()
        except Exception as error:  # whatever its expressions raise
            return _BAD + _reason(error).encode(errors="replace")
        return _GOOD

    answer = system.run_apart(attempt, memory=_MEMORY, seconds=SECONDS)
    if answer is None or answer.startswith(_GOOD):
        return ""
    return answer[1:].decode(errors="replace") if answer else f"it takes longer than {SECONDS:g} seconds"
