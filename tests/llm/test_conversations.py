"""Conversations as people store them: parts of text, calls of tools, and questions and answers as messages."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from matrix_ssl.errors import DataError
from matrix_ssl.llm.data import question_files, templates
from matrix_ssl.llm.data.templates import Exchange
from matrix_ssl.llm.finetune.selection import select
from matrix_ssl.llm.finetune.settings import FineTuneSettings
from tests.support import llm_toys

pytest.importorskip("transformers")

# writes tools and their calls in the manner of Qwen 2.5
TOOLS_TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}"
    "</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def calls(arguments: Any, name: str = "get_weather") -> list[dict[str, Any]]:
    return [{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}]


QUESTION, ANSWER = [says("user", "q")], [says("assistant", "a")]


def read(row: dict[str, Any], tmp_path: Path, columns: tuple[str, ...] = ()) -> Exchange:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    rows = question_files.read_rows(str(path))
    (exchange,) = question_files.exchanges(rows, question_files.find_columns(rows, columns))
    (question,) = question_files.read_questions(str(path), columns)
    assert question == exchange._replace(answer="", rest={})  # what is asked is what was learned
    return exchange


def written(exchange: Exchange, template: str = TOOLS_TEMPLATE) -> tuple[str, str]:
    tokenizer = llm_toys.tokenizer()
    tokenizer.chat_template = template
    return templates.prompt(exchange, "chat", tokenizer), templates.answer(exchange, "chat", tokenizer)


@pytest.mark.parametrize(
    "content",
    [[{"type": "text", "text": "q"}], [{"type": "input_text", "text": "q"}], [{"text": "q", "image_url": None}], ["q"],
     [{"type": "text", "text": ""}, {"type": "text", "text": "q"}]],
)  # fmt: skip
def test_a_content_may_be_parts_of_text(content: Any, tmp_path: Path) -> None:
    answer = says("assistant", [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}])
    assert read({"messages": [says("user", content), answer]}, tmp_path) == Exchange(QUESTION, "a b")


@pytest.mark.parametrize("prompt, completion", [(QUESTION, ANSWER), (QUESTION, "a"), ("q", "a")])
def test_prompts_and_completions_may_be_messages_as_of_trl(prompt: Any, completion: Any, tmp_path: Path) -> None:
    assert read({"prompt": prompt, "completion": completion}, tmp_path) == Exchange(QUESTION, "a")
    row = {"prompt": prompt, "chosen": completion, "rejected": completion}
    assert read(row, tmp_path, ("prompt", "chosen")) == Exchange(QUESTION, "a")


def test_the_context_of_an_instruction_is_asked_as_in_dolly(tmp_path: Path) -> None:
    row = {"instruction": "i", "context": "c", "response": "o", "category": "x"}
    assert read(row, tmp_path) == Exchange.of("i\n\nc", "o")
    assert read(row | {"context": ""}, tmp_path) == Exchange.of("i", "o")


@pytest.mark.parametrize("arguments", ['{"city": "Zürich"}', {"city": "Zürich", "unit": None}])
@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER])])
def test_calls_of_tools_reach_the_template(arguments: Any, content: Any, tools: Any, tmp_path: Path) -> None:
    """They were left out without a word if the content was empty instead of null."""
    row = {
        "tools": tools,
        "messages": [
            says("user", "Rain?", name=None), says("assistant", content, tool_calls=calls(arguments)),
            says("tool", "sunny", tool_call_id="1"), says("assistant", "No.", tool_calls=None),
        ],
    }  # fmt: skip
    prompt, answer = written(read(row, tmp_path))
    assert prompt == (
        f'{json.dumps(WEATHER)}\n<|user|>Rain?</s>\n<|assistant|><call>get_weather {{"city": "Zürich"}}</call></s>\n'
        "<|tool|>sunny</s>\n<|assistant|>"
    )
    assert answer == "No.</s>\n"


def test_an_answer_may_be_a_call(tmp_path: Path) -> None:
    row = {"messages": [says("user", "Rain?"), says("assistant", None, tool_calls=calls("{}"))], "tools": [WEATHER]}
    exchange = read(row, tmp_path)
    assert written(exchange)[1] == "<call>get_weather {}</call></s>\n"
    with pytest.raises(DataError, match="A conversation with tools needs template=chat; plain takes a question"):
        templates.prompt(exchange, "plain", llm_toys.tokenizer())
    with pytest.raises(DataError, match="A conversation with tool_calls needs template=chat"):
        templates.prompt(exchange._replace(tools=()), "plain", llm_toys.tokenizer())


@pytest.mark.parametrize(
    "tools, last", [([WEATHER], says("assistant", "a")), ([], says("assistant", "a", tool_calls=calls("{}")))]
)
def test_a_template_that_knows_no_tools_is_refused(tools: Any, last: Any, tmp_path: Path) -> None:
    exchange = read({"messages": [*QUESTION, last], "tools": tools}, tmp_path)
    with pytest.raises(DataError, match="chat template leaves out the tool 'get_weather': use a template that writes"):
        written(exchange, PLAIN_TEMPLATE)


def test_reasoning_reaches_the_template(tmp_path: Path) -> None:
    exchange = read({"messages": [*QUESTION, says("assistant", "a", reasoning_content="r", id=5)]}, tmp_path)
    template = PLAIN_TEMPLATE.replace("{{ m.content }}", "{{ m.reasoning_content }}|{{ m.content }}")
    assert exchange == Exchange(QUESTION, "a", (), {"reasoning_content": "r"})
    assert written(exchange, template)[1] == "r|a</s>\n"


def test_tables_hold_conversations_as_lists_or_as_json(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    chats = [[*QUESTION, *ANSWER], [says("user", "r"), says("assistant", "", tool_calls=calls("{}"))]]
    parquet.write_table(arrow.Table.from_pylist([{"messages": chat} for chat in chats]), tmp_path / "x.parquet")
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], *([json.dumps(chat)] for chat in chats)])
    for name in ("x.parquet", "x.csv"):
        rows = question_files.read_rows(str(tmp_path / name))
        assert question_files.exchanges(rows, ("messages",)) == [
            Exchange(QUESTION, "a", (), {}), Exchange([says("user", "r")], "", (), {"tool_calls": calls({})}),
        ]  # fmt: skip
        assert [one.asked for one in question_files.read_questions(str(tmp_path / name))] == ["q", "r"]


@pytest.mark.parametrize(
    "row, words",
    [
        ({"messages": [says("user", [{"type": "image_url", "image_url": {"url": "x"}}]), *ANSWER]},
         r"row 1: messages, message 1 has a part of type 'image_url', but only text can be learned: remove it"),
        ({"messages": [*QUESTION, says("assistant", None)]}, "message 2 has the content None; expected a text"),
        ({"messages": [*QUESTION, says("assistant", " ")]}, "messages ends with an empty answer; write or remove it"),
        ({"messages": [*QUESTION, *ANSWER, *QUESTION]}, "ends with a message of 'user'; .* remove what follows"),
        ({"messages": [*QUESTION, says("assistant", "a", weight=0)]}, "ends with an answer of weight 0, which is not"),
        ({"messages": ANSWER}, "messages has an answer and no message before it: write the question"),
        ({"messages": [{"author": "a", "text": "b"}]}, "message 1 has the keys author, text; expected"),
        ({"conversations": ["q", "a"]}, "conversations, message 1 is 'q'; expected a list of messages"),
        ({"messages": "q"}, "messages is 'q'; expected a list of messages"),
        ({"messages": {"role": ["user", "assistant", "user"], "content": ["q", "a"]}}, "lists of 2 and 3 entries"),
        ({"messages": [*QUESTION, says("assistant", None, tool_calls=[{"id": 1}])]}, r"2 has the tool_calls \["),
        ({"messages": [*QUESTION, says("assistant", "", function_call={"name": "f"})]}, "write it as tool_calls"),
        ({"messages": [*QUESTION, *ANSWER], "tools": "none"}, "tools is 'none'; expected a list of descriptions"),
        ({"messages": [says("user", "\udc00"), *ANSWER]}, "messages has half of a character"),
        ({"prompt": "q", "completion": ANSWER}, "prompt is 'q', but the answer is a list of messages"),
        ({"question": "q", "answer": ["a", "b"]}, r"answer is \['a', 'b'\]; expected a non-empty string\.$"),
        ({"question": "q", "answer": float("nan")}, r"answer is nan; expected a non-empty string\.$"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_one_sentence_with_the_place(row: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    rows = question_files.read_rows(str(path))
    with pytest.raises(DataError, match=words):
        question_files.exchanges(rows, question_files.find_columns(rows))


@pytest.mark.parametrize(
    "row, columns",
    [
        ({"chat": json.dumps([*QUESTION, *ANSWER])}, ("chat",)),
        ({"prompt": json.dumps(QUESTION), "completion": json.dumps(ANSWER)}, ()),
        ({"prompt": json.dumps(QUESTION), "completion": "a"}, ()),
        ({"messages": [says("User", "q"), says("Assistant", "a")]}, ()),
        ({"messages": [says("user", "q"), says("model", "a")]}, ()),
    ],
)
def test_json_texts_and_other_names_of_roles_are_read_alike_when_learned_and_when_asked(
    row: Any, columns: tuple[str, ...], tmp_path: Path
) -> None:
    assert read(row, tmp_path, columns) == Exchange(QUESTION, "a", (), {})


@pytest.mark.parametrize(
    "text", ['[{"from": "Oslo", "to": "Rome"}]', '[{"role": "king", "name": "Ann"}]', "[1, 2]", "[]", "[q]"]
)
def test_a_list_in_json_that_is_no_conversation_is_a_text(text: str, tmp_path: Path) -> None:
    assert read({"question": text, "answer": text}, tmp_path) == Exchange.of(text, text)


def test_every_answer_of_a_conversation_may_be_learned(tmp_path: Path) -> None:
    """A conversation is split after the rows are held out, so that it is never on both sides."""
    tokenizer = llm_toys.tokenizer()
    tokenizer.chat_template = TOOLS_TEMPLATE
    rows: list[dict[str, Any]] = []
    for name in "abcd":
        turns = [says("user", f"{name}1"), says("assistant", "x"), says("user", "2"), says("assistant", "y", weight=0),
                 says("user", "3"), says("assistant", None, tool_calls=calls("{}")), says("tool", "4"),
                 says("assistant", "z", weight=1)]  # fmt: skip
        rows.append({"messages": turns})
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def selected(*assignments: str) -> Any:
        settings = FineTuneSettings("m", str(path), "chat").override(assignments)
        return select(settings, question_files.read_rows(str(path)), tokenizer)

    def texts(examples: Any) -> list[tuple[str, str]]:
        found = (examples[i] for i in range(len(examples)))
        parts = ((one["input_ids"], sum(label == -100 for label in one["labels"])) for one in found)
        return [(tokenizer.decode(ids[:n]), tokenizer.decode(ids[n:])) for ids, n in parts]

    first, call = "<|user|>a1</s>\n<|assistant|>", "<call>get_weather {}</call></s>\n"
    third = f"{first}x</s>\n<|user|>2</s>\n<|assistant|>y</s>\n<|user|>3</s>\n<|assistant|>"
    expected = [(first, "x</s>\n"), (third, call), (f"{third}{call}<|tool|>4</s>\n<|assistant|>", "z</s>\n")]
    every, last = selected("answers=all"), selected()
    assert texts(every.examples)[:3] == expected and len(every.examples) == 12 and not every.earlier
    assert texts(last.examples)[0] == expected[-1] and len(last.examples) == 4
    assert "is learned, not the 8 before; set answers=all" in " ".join(last.remarks(max_length=2048))
    halves = selected("answers=all", "held_out=0.5")
    names = [{text[0][8] for text in texts(part)} for part in halves.parts]
    assert [len(part) for part in halves.parts] == [6, 6] and not names[0] & names[1]


def test_what_follows_the_last_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    """As in ShareGPT, where users often have the last word. Scoring takes no such rows."""
    tokenizer, last = llm_toys.tokenizer(), says("assistant", None, tool_calls=calls("{}"))
    tokenizer.chat_template = TOOLS_TEMPLATE
    human, gpt = ({"from": name, "value": text} for name, text in (("human", "q"), ("gpt", "a")))
    rows: list[dict[str, Any]] = [
        {"conversations": [human, gpt]},
        {"conversations": [human, gpt, human]},
        {"conversations": json.dumps([human, gpt, human, human])},
        {"conversations": [*QUESTION, last, says("tool", "4")]},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings, read_rows = FineTuneSettings("m", str(path), "chat"), question_files.read_rows(str(path))
    found = select(settings, read_rows, tokenizer)
    expected = [Exchange(QUESTION, "a", (), {})] * 3 + [Exchange(QUESTION, "", (), {"tool_calls": calls({})})]
    assert question_files.answered_exchanges(read_rows, ("conversations",)) == (expected, 3)
    assert len(found.examples) == 4 and "3 conversations go on after the last answer" in " ".join(
        found.remarks(max_length=2048)
    )
    with pytest.raises(DataError, match=r"row 2: conversations ends with a message of 'user'; .* 3 of 4 rows"):
        question_files.exchanges(read_rows, ("conversations",))
    held_out = select(settings.override(["answers=all", "held_out=0.5"]), read_rows, tokenizer)
    assert "3 conversations go on" in " ".join(held_out.remarks(max_length=2048))
    path.write_text(json.dumps({"messages": QUESTION}))
    with pytest.raises(DataError, match="messages ends with a message of 'user'; expected an answer"):
        select(settings, question_files.read_rows(str(path)), tokenizer)


@pytest.mark.parametrize(
    "row, columns, unused",
    [
        ({"question": "q", "answer": "a"}, (), []),
        ({"instruction": "i", "input": "", "output": "o", "system": "s", "history": []}, (), ["system", "history"]),
        ({"messages": [*QUESTION, *ANSWER], "tools": [WEATHER], "source": "x"}, (), ["source"]),
        ({"chat": [*QUESTION, *ANSWER], "tools": [WEATHER]}, ("chat",), []),
        ({"question": "q", "answer": "a", "tools": "a hammer"}, (), ["tools"]),
    ],
)
def test_columns_that_are_not_used_are_known(row: Any, columns: Any, unused: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    assert question_files.unused_columns(question_files.read_rows(str(path)), columns) == unused
