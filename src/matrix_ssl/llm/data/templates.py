"""How a question becomes a prompt, in training and in scoring alike.

``metamath`` is the prompt that MetaMath publishes for its models (Yu et al., "MetaMath: Bootstrap Your Own Mathematical
Questions for Large Language Models", ICLR 2024; README of its repository). Its training code was not available here, so
that its training used the same prompt is not verified. ``plain`` is the question and a newline; ``chat`` is what the
tokenizer's own chat template makes of a conversation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from matrix_ssl.errors import ConfigError, DataError, did_you_mean

TemplateName = Literal["metamath", "chat", "plain"]
Extraction = Literal["strict-match", "flexible-extract", "answer-is"]  # where the number of an answer stands

_PROMPTS = {
    "metamath": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{question}\n\n### Response: Let's think step by step."
    ),
    "plain": "{question}\n",
}
STOPS = {"metamath": ("### Instruction:",), "plain": (), "chat": ()}  # texts that end an answer, beside the end token


class Exchange(NamedTuple):
    """What was said, and the answer that is to be learned."""

    messages: Sequence[Mapping[str, str]]  # each with a role and a content
    answer: str

    @classmethod
    def of(cls, question: str, answer: str) -> "Exchange":
        """A question of the user and its answer."""
        return cls([{"role": "user", "content": question}], answer)


def check_template(name: str, tokenizer: Any) -> None:
    """Raises ConfigError for an unknown template, and for ``chat`` where the tokenizer has no chat template."""
    if name not in get_args(TemplateName):
        raise ConfigError(f"template={name!r} is not known.{did_you_mean(name, get_args(TemplateName))}")
    if name == "chat" and not tokenizer.chat_template:
        raise ConfigError("template=chat: the tokenizer has no chat template; use metamath or plain.")


def adds_special_tokens(name: str) -> bool:
    """Whether the tokenizer puts its own first token before a prompt; chat templates write theirs themselves."""
    return name != "chat"


def prompt(exchange: Exchange, template: str, tokenizer: Any) -> str:
    """The text before the answer.

    Raises:
        DataError: the messages are not what the template takes.
    """
    if template == "chat":
        return _render(exchange.messages, tokenizer, add_generation_prompt=True)
    if len(exchange.messages) != 1 or exchange.messages[0]["role"] != "user":
        roles = ", ".join(message["role"] for message in exchange.messages)
        raise DataError(
            f"a conversation of {roles} before the answer needs template=chat; {template} takes one question."
        )
    return _PROMPTS[template].replace("{question}", exchange.messages[0]["content"])


def answer(exchange: Exchange, template: str, tokenizer: Any) -> str:
    """The text that follows the prompt, without the token that ends it where the template does not write one.

    Raises:
        DataError: the chat template writes the prompt differently when an answer follows.
    """
    if template != "chat":
        return exchange.answer
    before = prompt(exchange, template, tokenizer)
    whole = _render([*exchange.messages, {"role": "assistant", "content": exchange.answer}], tokenizer)
    if not whole.startswith(before):
        raise DataError(
            "the tokenizer's chat template changes what stands before an answer once the answer is there, so that the "
            "two cannot be told apart: use template=plain, or mend the template."
        )
    return whole[len(before) :]


def _render(messages: Sequence[Mapping[str, str]], tokenizer: Any, *, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise DataError(f"the tokenizer's chat template refuses a conversation: {error}.") from error
