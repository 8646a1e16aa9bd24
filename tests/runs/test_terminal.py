"""Text from elsewhere on a terminal: no control characters, no markup, no secrets."""

import io

import pytest
from rich.table import Table

from matrix_ssl.runs.terminal import Terminal, is_secret, printable, redact, redact_values, redact_words


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b]0;owned\x07\x1b[31mred", "\\x1b]0;owned\\x07\\x1b[31mred"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("\x9b31m\x7f\r", "\\x9b31m\\x7f\\x0d"),
        ("Überblick, 漢字, 🙂\n\tb", "Überblick, 漢字, 🙂\n\tb"),
    ],
)
def test_control_characters_are_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_everything_that_a_terminal_shows_is_printable() -> None:
    file = io.StringIO()
    table = Table(title="[/x] \x1b[1m")
    table.add_column("\x1b[2m")
    table.add_row("\x1b[3m [bold]x[/bold]")
    for shown in (table, "\x1b[4m [red]"):
        Terminal(file, width=60).print(shown)
    text = file.getvalue()
    assert "\x1b" not in text and text.count("\\x1b") == 4 and "[bold]x[/bold]" in text and "[/x]" in text


SECRETS = (
    "https://user:hunter2222@host/path", "hub_token=hunter2222", "HF_TOKEN: hunter2222", '"api_key": "hunter2222"',
    "password=hunter2222", "--set push.secret=hunter2222", "hf_hunter2222hunter2222hunter2222",
)  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_not_shown(text: str) -> None:
    assert "hunter2222" not in redact(text) and "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "max_new_tokens=512",
        "eos_token=<eos>",
        "12 tokens: 3",
        "The text has 1 token: more is needed",
        "https://host/a:b",
        "secrets of the deep",
        '"use_mask_token": false, "hub_token": null',
        '"image_token": "<image>", "pad_token": "<pad>", "model.cls_token": "[CLS]", "tokenizer": "a/b"',
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


def test_the_values_of_secret_variables_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2222")
    assert redact("https://host?x=hunter2222") == "https://host?x=***"


def test_nested_values_and_words_are_redacted() -> None:
    values = {"a": ["https://u:hunter2222@h"], "hub_token": "hunter2222", "n": 3, "none": None}
    assert redact_values(values) == {"a": ["https://u:***@h"], "hub_token": "***", "n": 3, "none": None}
    words = ["--hub-token", "hunter2222", "--set", "hub_token=hunter2222", "--out", "r"]
    assert redact_words(words) == ["--hub-token", "***", "--set", "hub_token=***", "--out", "r"]


def test_names_of_secrets() -> None:
    assert all(map(is_secret, ("WANDB_API_KEY", "token", "hub_token", "PASSWORD")))
    assert all(map(is_secret, ("hf_token", "access_token", "db.password", "bot-token", "auth.token")))
    assert not any(map(is_secret, ("max_tokens", "pad_token", "monkey", "epochs", "tokenizer", "imageToken")))
    assert not any(map(is_secret, ("image_token", "model.pad_token", "use_mask_token", "boi_token", "end-token")))
