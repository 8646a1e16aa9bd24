"""Chat templates from elsewhere: whatever they do, one sentence within bounded time and memory."""

import pytest

from matrix_ssl.errors import DataError
from matrix_ssl.llm.data import chat
from matrix_ssl.llm.data.templates import Exchange, prompt
from tests.support.chat_tokenizer import ChatTokenizer

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    monkeypatch.setattr(chat, "_LONGEST", 10**5)


def rendered(template: str) -> str:
    return prompt(Exchange.of("one", "two"), "chat", ChatTokenizer(template))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "template, reason",
    [
        ("{{ 1 // 0 }}", "division or modulo by zero"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ messages + 1 }}", "concatenate"),
        ("{% include 'x' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ missing.name.name }}", "undefined"),
        ("{% for", "unexpected"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "longer than 0.3 seconds"),
        ("{{ 'x' * 10**11 }}", "too much memory"),
        ("{{ 'x' * 10**6 }}", "longer than 100,000 characters"),
    ],
)
def test_a_template_that_fails_is_one_sentence(template: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"chat template rejects a conversation.*{reason}"):
        rendered(template)


def test_a_template_that_fails_later_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first conversation, which is tried in a process of its own, was good."""
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setitem(chat.tried, template, "")
    with pytest.raises(DataError, match="longer than"):
        rendered(template)


def test_a_good_template_is_rendered() -> None:
    assert rendered("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}") == "user: one"
