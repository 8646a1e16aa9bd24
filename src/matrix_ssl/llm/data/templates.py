"""How a question becomes a prompt, in training and in scoring alike.

``metamath`` is the prompt that MetaMath publishes for its models (Yu et al., "MetaMath: Bootstrap Your Own Mathematical
Questions for Large Language Models", ICLR 2024; README of its repository). Whether its training used the same prompt is
not verified. ``plain`` is the question and a newline; ``chat`` is the tokenizer's own chat template.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from matrix_ssl.errors import ConfigError, DataError, did_you_mean
from matrix_ssl.llm.data.chat import render
from matrix_ssl.llm.data.messages import tool_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateName = Literal["metamath", "chat", "plain"]
Extraction = Literal["strict-match", "flexible-extract", "answer-is"]  # how the number of an answer is marked

_PROMPTS = {
    "metamath": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{question}\n\n### Response: Let's think step by step."
    ),
    "plain": "{question}\n",
}
STOPS = {"metamath": ("### Instruction:",), "plain": (), "chat": ()}  # strings that also end an answer


class Exchange(NamedTuple):
    """The messages before an answer, and the answer that is learned."""

    messages: Sequence[Mapping[str, Any]]  # each with a role and a content, both texts, and perhaps calls of tools
    answer: str  # may be empty if it calls tools
    tools: Sequence[Mapping[str, Any]] = ()  # descriptions of those that may be called
    rest: Mapping[str, Any] = {}  # what the answer has in addition to its text: tool_calls, reasoning_content

    @classmethod
    def of(cls, question: str, answer: str) -> "Exchange":
        """A question of the user and its answer."""
        return cls([{"role": "user", "content": question}], answer)

    @property
    def asked(self) -> str:
        """The text of the last message before the answer."""
        return str(self.messages[-1]["content"])


def earlier_answers(exchange: Exchange) -> list[Exchange]:
    """The answers before the last one of a conversation, each with what precedes it; not those of weight 0."""
    found = []
    for place, message in enumerate(exchange.messages):
        answers = message["role"] == "assistant" and (message["content"].strip() or message.get("tool_calls"))
        if place and answers and message.get("weight", 1):
            rest = {key: value for key, value in message.items() if key not in ("role", "content")}
            found.append(Exchange(exchange.messages[:place], message["content"], exchange.tools, rest))
    return found


def check_template(name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises ConfigError for an unknown template, and for ``chat`` if the tokenizer has no chat template."""
    if name not in get_args(TemplateName):
        raise ConfigError(f"template={name!r} is unknown.{did_you_mean(name, get_args(TemplateName))}")
    if name == "chat" and not tokenizer.chat_template:
        raise ConfigError("template=chat: the tokenizer has no chat template; use metamath or plain.")


def each_text(
    part: Callable[[Exchange, str, "PreTrainedTokenizerBase"], str], rows: Sequence[Exchange], template: str,
    tokenizer: "PreTrainedTokenizerBase", *, where: Callable[[int], str] = lambda index: f"row {index + 1}",
) -> list[str]:  # fmt: skip
    """Applies ``part``, either ``prompt`` or ``answer``, to every row; a DataError begins with the row's place."""
    texts = []
    for index, row in enumerate(rows):
        try:
            texts.append(part(row, template, tokenizer))
        except DataError as error:
            raise DataError(f"{where(index)}: {error}") from error
    return texts


def adds_special_tokens(name: str) -> bool:
    """Whether the tokenizer puts its own first token before a prompt; chat templates write their own."""
    return name != "chat"


def prompt(exchange: Exchange, template: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text before the answer."""
    if template == "chat":
        text = render(exchange.messages, tokenizer, tools=exchange.tools, add_generation_prompt=True)
        _check_names([*exchange.tools, *_calls(exchange.messages)], text)
        return text
    if exchange.tools or exchange.rest:
        what = "tools" if exchange.tools else ", ".join(exchange.rest)
        raise DataError(f"A conversation with {what} needs template=chat; {template} takes a question and an answer.")
    if len(exchange.messages) != 1 or exchange.messages[0]["role"] != "user":
        roles = ", ".join(message["role"] for message in exchange.messages)
        raise DataError(
            f"A conversation of {roles} before the answer needs template=chat; {template} takes one question."
        )
    return _PROMPTS[template].replace("{question}", exchange.asked)


def answer(exchange: Exchange, template: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text after the prompt, without an end token unless the template writes one."""
    if template != "chat":
        return exchange.answer
    before = prompt(exchange, template, tokenizer)
    messages = [*exchange.messages, {"role": "assistant", "content": exchange.answer, **exchange.rest}]
    whole = render(messages, tokenizer, tools=exchange.tools, add_generation_prompt=False)
    if not whole.startswith(before):
        raise DataError(
            "The tokenizer's chat template changes the prompt once an answer follows, so the two cannot be separated: "
            "use template=plain, or fix the template."
        )
    _check_names(_calls([exchange.rest]), whole[len(before) :])
    return whole[len(before) :]


def _calls(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All calls of tools in messages."""
    return [call for message in messages for call in message.get("tool_calls", ())]


def _check_names(tools: Sequence[Mapping[str, Any]], text: str) -> None:
    """Raises DataError if a chat template has left out tools, or calls of them, as those do that know none."""
    if (missing := next((name for name in tool_names(tools) if name not in text), None)) is not None:
        raise DataError(
            f"The tokenizer's chat template leaves out the tool {missing!r}: use a template that writes tools and "
            f"calls of them, or remove them from the data."
        )
