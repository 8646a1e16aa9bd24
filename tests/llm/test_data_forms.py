"""Questions and answers in the forms that people have them, and texts that tokenizers or templates make difficult."""

import gzip
import json
from pathlib import Path

import pytest
import torch
import transformers

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.llm.data import examples, question_files
from matrix_ssl.llm.data.templates import Exchange
from matrix_ssl.llm.writing import ignored_settings, write
from tests.support import llm_toys

ROW = {"question": "a, b", "answer": 'say "c"'}
LINE = json.dumps(ROW)
EXPECTED = [Exchange.of("a, b", 'say "c"')]
TABLE = 'question,answer\n"a, b","say ""c"""\n'
CHAT = {
    "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
}
CHAT_EXPECTED = [Exchange([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "a")]
FORMS = {
    "lines.jsonl": (LINE, EXPECTED),
    "lines.json": (f"{LINE}\n{LINE}", EXPECTED * 2),
    "LIST.JSON": (json.dumps([ROW]), EXPECTED),
    "list.jsonl": (json.dumps([ROW], indent=1), EXPECTED),
    "flat.jsonl": (json.dumps([ROW]), EXPECTED),
    "lines": (LINE, EXPECTED),
    # with a byte order mark, as editors of Windows write
    "mark.json": (f"\ufeff{LINE}\n{LINE}", EXPECTED * 2),
    "mark.jsonl": ("\ufeff" + json.dumps([ROW], indent=1), EXPECTED),
    "mark": (f"\ufeff{LINE}", EXPECTED),
    "x.csv": (TABLE, EXPECTED),
    "x.CSV.gz": (TABLE, EXPECTED),
    "europe.csv": ("\ufeff" + TABLE.replace("question,answer", "question;answer").replace('","', '";"'), EXPECTED),
    "tabs.csv": (TABLE.replace("question,answer", "question\tanswer").replace('","', '"\t"'), EXPECTED),
    "number.jsonl": (json.dumps(ROW | {"answer": 7}), [Exchange.of("a, b", "7")]),
    "x.tsv": (TABLE.replace("question,answer", "question\tanswer").replace('","', '"\t"'), EXPECTED),
    "share.jsonl": (json.dumps(CHAT), CHAT_EXPECTED),
    "alpaca.json": (
        json.dumps([{"instruction": "i", "input": x, "output": "o"} for x in ("", "j")]),
        [Exchange.of("i", "o"), Exchange.of("i\n\nj", "o")],
    ),
    "response.json": (
        json.dumps([{"instruction": "i", "input": x, "response": "o"} for x in ("", "j")]),
        [Exchange.of("i", "o"), Exchange.of("i\n\nj", "o")],
    ),
    # what is empty may be missing, in the first row, too
    "some.json": (
        json.dumps([{"instruction": "i", "output": "o", **more} for more in ({}, {"input": "j"}, {"input": None})]),
        [Exchange.of("i", "o"), Exchange.of("i\n\nj", "o"), Exchange.of("i", "o")],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_files(name, tmp_path):
    text, expected = FORMS[name]
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows = question_files.read_rows(str(tmp_path / name))
    assert question_files.exchanges(rows, question_files.find_columns(rows)) == expected


@pytest.mark.parametrize(
    ("columns", "asked"), [((), "i\n\nj"), (("instruction", "response"), "i"), (("input", "response"), "j")]
)
def test_prompts_are_the_same_with_and_without_answers(columns, asked, tmp_path):
    """Columns that are named are all that is used."""
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"instruction": "i", "input": "j", "response": "o"}))
    rows = question_files.read_rows(str(path))
    (learned,) = question_files.exchanges(rows, question_files.find_columns(rows, columns))
    (question,) = question_files.read_questions(str(path), columns)
    assert (learned, question) == (Exchange.of(asked, "o"), Exchange.of(asked, ""))


@pytest.mark.parametrize("extra", ["prompt", "question", "query"])
def test_a_question_without_an_answer_beside_it_is_neither_learned_nor_asked(extra, tmp_path):
    """Some instruction data keep the text of a prompt next to what it was made of."""
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({extra: "another", "instruction": "i", "input": "", "output": "o"}))
    rows = question_files.read_rows(str(path))
    assert question_files.exchanges(rows, question_files.find_columns(rows)) == [Exchange.of("i", "o")]
    assert question_files.read_questions(str(path)) == [Exchange.of("i", "")]


def test_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    parquet.write_table(arrow.Table.from_pylist([ROW]), path)
    rows = question_files.read_rows(str(path))
    assert question_files.exchanges(rows, question_files.find_columns(rows)) == EXPECTED
    parquet.write_table(arrow.table([["q"], ["a"], ["b"]], names=["question", "answer", "answer"]), path)
    with pytest.raises(DataError, match="has the column 'answer' twice: rename one"):
        question_files.read_rows(str(path))
    path.write_text("PAR1")
    with pytest.raises(DataError, match=r"is not a Parquet file: .* save its rows as \.jsonl"):
        question_files.read_rows(str(path))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("cut.jsonl", '{"question": "ok", "answer": "1"}\n{"question": "cut \\ud83d", "answer": "1"}',
         "row 2: question has half of a character at position 4"),
        ("chat.jsonl", '{"messages": [{"role": "user", "content": "\\udc00"}, {"role": "assistant", "content": "1"}]}',
         "row 1: messages has half of a character"),
        ("deep.jsonl", '{"question": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: the values are nested"),
        ("deep.json", "[" * 100_000 + "]" * 100_000, "nested too"),
        ("more.csv", "question,answer\na,b,c\n", "line 2: more values than the 2 names"),
        ("open.csv", 'question,answer\n"a,b\n', "quotes in a text are doubled"),
        ("twice.csv", "question,answer,answer\na,b,c\n", "has the column 'answer' twice: rename one"),
        ("text.md", "# a\n", r"has the extension \.md: expected JSON lines"),
        ("share.jsonl", '{"conversations": [{"from": "human", "value": "a"}]}',
         "conversations ends with a message of 'user'"),
        ("wide.csv", TABLE.encode("utf-16"), "not UTF-8 but UTF-16 .* iconv -f UTF-16 -t UTF-8"),
        ("wide.jsonl", LINE.encode("utf-16"), "line 1: not UTF-8 but UTF-16"),
        ("little.csv", TABLE.encode("utf-16-le"), "not UTF-8 but UTF-16"),
        ("latin.csv", "question,answer\nWie groß?,b\n".encode("latin-1"),
         "byte 23, perhaps Latin-1 .* WINDOWS-1252 -t"),
        ("names.csv", "a, answer\nb,c\n", "the columns a, ' answer', but .* The first line of a table holds"),
        ("empty.csv", "question,answer\na,b\nc,\n,d\n", r"row 2: answer is ''; .* 2 of 3 rows cannot be used"),
        ("column.json", json.dumps([{"question": ["a"] * 999, "answer": "b"}]), r"question is \[.{79}…; expected"),
        ("input.jsonl", '{"instruction": "a", "input": ""}', "but none of question/answer"),
        ("whole.json", json.dumps({"version": 1, "data": [ROW]}, indent=1),
         r"is one JSON object, not a list of rows: write the rows, perhaps those in data, as a list, or one per line"),
        ("broken.json", '{"question": "a", "answer": "b"}\n{"question": "a",\n', r"broken\.json, line 2: not JSON"),
        ("truth.jsonl", '{"question": "a", "answer": true}', "answer is True; expected a non-empty string"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence_with_the_place(name, text, words, tmp_path):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words):
        rows = question_files.read_rows(str(tmp_path / name))
        question_files.exchanges(rows, question_files.find_columns(rows))


def test_a_question_is_not_its_own_answer(tmp_path):
    (tmp_path / "x.jsonl").write_text(LINE)
    rows = question_files.read_rows(str(tmp_path / "x.jsonl"))
    with pytest.raises(DataError, match="--columns answer,answer: question and answer are the same column"):
        question_files.find_columns(rows, ("answer", "answer"))


@pytest.mark.parametrize(("prompt", "words"), [(" \n", "--prompt is empty"), ("caf\udce9", "--prompt has half of a")])
def test_prompts_that_are_no_text(prompt, words):
    with pytest.raises(DataError, match=words):
        question_files.check_prompts(["a", prompt])


def test_datasets_with_configurations_and_splits(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sets, lines = tmp_path / "sums", ["---", "configs:"]
    for config in ("main", "other"):
        (sets / config).mkdir(parents=True)
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in ("train", "test"):
            (sets / config / f"{split}.jsonl").write_text(json.dumps({"question": config, "answer": split}) + "\n")
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (sets / "README.md").write_text("\n".join([*lines, "---", ""]))
    for place, expected in (("main", ("main", "train")), ("other:test", ("other", "test"))):
        rows = question_files.read_rows(f"hf:{sets}:{place}")
        assert [tuple(row.values()) for row in rows.rows] == [expected]
    with pytest.raises(DataError, match=r"'main', 'other'.* hf:NAME:CONFIGURATION:SPLIT"):
        question_files.read_rows(f"hf:{sets}")
    with pytest.raises(DataError, match="expected hf:NAME"):
        question_files.read_rows("hf:a:b:c:d")


def adds_an_end():
    """A tokenizer that puts its end after every text, as those saved with add_eos_token."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    whole = Tokenizer.from_str(llm_toys.tokenizer().backend_tokenizer.to_str())
    whole.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", whole.token_to_id("</s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("answer", ["4", "The tag </s> ends it.", "4</s>"])
@pytest.mark.parametrize("tokenizer", [llm_toys.tokenizer, adds_an_end], ids=["plain", "adds an end"])
def test_an_answer_has_one_end_of_its_own_and_a_prompt_has_none(tokenizer, answer):
    (row,) = (Exchange.of("2 + 2?", answer),)
    made = examples.make_examples([row], template="plain", tokenizer=tokenizer(), max_length=99)
    text = tokenizer().decode(made[0]["input_ids"])
    assert text == f"2 + 2?\n{answer.removesuffix('</s>')}</s>"


def test_writing_is_greedy_whatever_the_folder_says_and_the_same_in_every_batch():
    model, tokenizer = llm_toys.llama().eval(), llm_toys.tokenizer()
    model.generation_config.update(repetition_penalty=1.3, num_beams=3, do_sample=True, temperature=0.5)
    before = model.generation_config
    prompts = [f"{row['question']}\n" for row in llm_toys.questions(5)] + ["a\n"]
    one, several, ended = (
        write(model, kind, prompts, template="plain", batch_size=size, max_new_tokens=6)
        for size, kind in ((1, tokenizer), (4, tokenizer), (4, adds_an_end()))
    )
    assert one.texts == several.texts == ended.texts and one.tokens == several.tokens
    assert model.generation_config is before
    for prompt, text in zip(prompts, one.texts, strict=True):
        ids, new = tokenizer(prompt)["input_ids"], []
        while len(new) < 6 and tokenizer.eos_token_id not in new:
            new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        assert text == tokenizer.decode(new, skip_special_tokens=True)


def test_ignored_settings_of_all_kinds_are_recorded_as_json():
    model = llm_toys.llama()
    model.generation_config.update(num_beams=3, watermarking_config=transformers.WatermarkingConfig(bias=9.0))
    ignored = json.loads(json.dumps(ignored_settings(model)))
    assert ignored["num_beams"] == 3 and ignored["watermarking_config"]["bias"] == 9.0


def test_a_prompt_with_a_token_that_the_model_has_no_embedding_of_is_refused():
    model = llm_toys.llama()
    model.resize_token_embeddings(260)
    with pytest.raises(ConfigError, match="exceeds the 260 embeddings of the model; tokenizer and model do not match"):
        write(model, llm_toys.tokenizer(), ["How many?\n"], template="plain", batch_size=1, max_new_tokens=1)


def test_the_cache_is_static_where_the_model_has_one_and_changes_no_answer(monkeypatch: pytest.MonkeyPatch):
    model, tokenizer, caches = llm_toys.llama().eval(), llm_toys.tokenizer(), set()
    model.register_forward_pre_hook(lambda _, args, kwargs: caches.add(type(kwargs["past_key_values"]).__name__),
                                    with_kwargs=True)  # fmt: skip
    prompts = [f"{row['question']}\n" for row in llm_toys.questions(5)] + ["a\n"]

    def texts() -> list[str]:
        caches.clear()
        return write(model, tokenizer, prompts, template="plain", batch_size=4, max_new_tokens=6).texts

    static = texts()
    assert caches == {"StaticCache"}
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    assert texts() == static and caches == {"DynamicCache"}


def test_questions_without_answers(tmp_path: Path):
    expected = [Exchange.of("one?", ""), Exchange.of("two?", "")]
    (tmp_path / "a.txt").write_bytes(b"one?\r\n\ntwo?\n")
    assert question_files.read_questions(str(tmp_path / "a.txt")) == expected
    (tmp_path / "a.jsonl").write_text('{"prompt": "one?"}\n{"prompt": "two?"}\n')
    assert question_files.read_questions(str(tmp_path / "a.jsonl")) == expected
    (tmp_path / "b.csv").write_text("text\none?\n")
    assert question_files.read_questions(str(tmp_path / "b.csv"), ("text",)) == expected[:1]
    with pytest.raises(DataError, match="has the columns text, none of which"):
        question_files.read_questions(str(tmp_path / "b.csv"))
    (tmp_path / "c.jsonl").write_text('{"instruction": "one?"}\n{"instruction": "one?", "input": "x"}\n')
    assert question_files.read_questions(str(tmp_path / "c.jsonl")) == [expected[0], Exchange.of("one?\n\nx", "")]
    (tmp_path / "c.txt").write_bytes("one\u2028or\x0cother?\rtwo?".encode())  # only ends of lines in files end a line
    assert [one.messages[0]["content"] for one in question_files.read_questions(str(tmp_path / "c.txt"))] == [
        "one\u2028or\x0cother?", "two?",
    ]  # fmt: skip
    (tmp_path / "d.txt").write_text("\n \n")
    with pytest.raises(DataError, match="is empty: it needs at least one question"):
        question_files.read_questions(str(tmp_path / "d.txt"))
    messages = CHAT_EXPECTED[0].messages
    for whole in (CHAT, {"messages": messages}):  # with and without an answer
        (tmp_path / "e.jsonl").write_text(json.dumps(whole))
        assert question_files.read_questions(str(tmp_path / "e.jsonl")) == [Exchange(messages, "")]
    (tmp_path / "e.jsonl").write_text('{"messages": [{"role": "assistant", "content": "a"}]}')
    with pytest.raises(DataError, match="row 1: messages has only an answer of the assistant"):
        question_files.read_questions(str(tmp_path / "e.jsonl"))
