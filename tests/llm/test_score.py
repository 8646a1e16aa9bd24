"""Scoring against lm-evaluation-harness called apart, hand-made answers, and Wilson's formula."""

import json
import math
import random
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
import yaml

from matrix_ssl.cli import main
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, RunFolderError
from matrix_ssl.llm import score as scoring
from matrix_ssl.llm.data.question_files import Rows, read_rows
from matrix_ssl.llm.data.templates import Exchange, prompt
from matrix_ssl.runs.files import read_json
from tests.support import llm_toys

lm_eval = pytest.importorskip("lm_eval")
# what lm-eval 0.4.13 and its dependencies warn of
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sums of which half the answers are changed by one, so that a model that has learned them is half right."""
    rows = llm_toys.questions(40, seed=3)
    rows = list({row["question"]: row for row in rows}.values())[:8]
    path = tmp_path_factory.mktemp("data") / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows[1::2]:
        text, _, number = row["answer"].rpartition("#### ")
        row["answer"] = f"{text}#### {int(number) + 1}"
    path.with_name("changed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that has learned the eight sums by heart."""
    folder = tmp_path_factory.mktemp("run")
    llm_toys.llama().save_pretrained(folder / "base")
    llm_toys.tokenizer().save_pretrained(folder / "base")
    words = ["llm", "finetune", "--model", folder / "base", "--data", data, "--template", "plain",
             "--out", folder / "run", "--set", "epochs=120", "--set", "batch_size=8", "--set", "learning_rate=0.01",
             "--set", "save_strategy=no", "--device", "cpu"]  # fmt: skip
    main.commands.main([str(word) for word in words], standalone_mode=False)
    return folder / "run"


def command(*words: Any) -> None:
    main.commands.main(["llm", "score", "--device", "cpu", *map(str, words)], standalone_mode=False)


def test_it_gives_the_numbers_of_the_harness(run, data, tmp_path, capsys):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    changed, out = data.with_name("changed.jsonl"), tmp_path / "answers.jsonl"
    command("--model", run, "--data", changed, "--max-new-tokens", 24, "--batch-size", 3, "--out", out)
    result = read_json(out.with_suffix(".json"))
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]

    # the harness's own gsm8k, but for the data and the prompt
    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text("utf-8"))
    task |= {"task": "own", "dataset_path": "json", "doc_to_text": "{{question}}\n", "num_fewshot": 0,
             "dataset_kwargs": {"data_files": {"test": str(changed)}, "cache_dir": str(tmp_path)}}  # fmt: skip
    for key in ("dataset_name", "training_split", "fewshot_split"):
        task.pop(key)
    task["generation_kwargs"]["max_gen_toks"] = 24
    model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(run / "model"),
        tokenizer=AutoTokenizer.from_pretrained(run / "model"),
        batch_size=1,
    )
    expected = lm_eval.simple_evaluate(
        model=model, tasks=[task], bootstrap_iters=0, log_samples=True,
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
    )  # fmt: skip
    accuracy = expected["results"]["own"]["exact_match,strict-match"]
    assert 0 < accuracy < 1  # it has learned something, and half the answers are changed
    assert result["accuracy"] == accuracy == sum(line["right"] for line in lines) / 8
    flexible = expected["results"]["own"]["exact_match,flexible-extract"]
    assert result["extractions"]["flexible-extract"]["accuracy"] == flexible
    assert [line["completion"] for line in lines] == [
        s["resps"][0][0] for s in expected["samples"]["own"] if s["filter"] == "strict-match"
    ]
    assert "strict-match" in capsys.readouterr().out


def test_completions_are_greedy_and_their_prompts_those_of_the_training(run, data, tmp_path):
    out = tmp_path / "answers.jsonl"
    command("--model", run, "--data", data, "--max-new-tokens", 24, "--limit", 3, "--out", out)
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(lines) == read_json(out.with_suffix(".json"))["questions"] == 3
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run / "model"), llm_toys.tokenizer()
    for line, row in zip(lines, read_rows(str(data)).rows, strict=False):
        assert line["prompt"] == f"{line['question']}\n" == f"{row['question']}\n"
        ids = tokenizer(line["prompt"])["input_ids"]
        text: list[int] = []
        while len(text) < 24 and (not text or text[-1] != tokenizer.eos_token_id):
            text.append(int(model(input_ids=torch.tensor([ids + text])).logits[0, -1].argmax()))
        assert line["completion"] == tokenizer.decode(text, skip_special_tokens=True)


def test_an_answer_ends_at_the_end_token_of_the_tokenizer():
    """Whatever the model's own is, and what the model would write after it while longer answers are not done."""
    model, tokenizer = llm_toys.llama(), llm_toys.tokenizer()
    end, longer = tokenizer.eos_token_id, "2 + 3 = 5 and 5 + 4 = 9 so\n#### 9"
    one, many = ([*tokenizer(text)["input_ids"], end] for text in ("one?\n#### 1", f"many?\n{longer}"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        losses = [model(input_ids=ids, labels=ids).loss for ids in (torch.tensor([one + many]), torch.tensor([many]))]
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = Rows([{"question": "one?", "answer": "#### 1"}, {"question": "many?", "answer": longer}], "rows", "")
    for own in (None, tokenizer.pad_token_id, [tokenizer.pad_token_id]):
        model.generation_config.eos_token_id = own
        for batch_size in (1, 2):
            settings = {"template": "plain", "batch_size": batch_size, "max_new_tokens": 40}
            found = scoring.score_model(model, tokenizer, rows, **settings)
            assert [answer.completion for answer in found.answers] == ["#### 1", longer]
        assert model.generation_config.eos_token_id == own


class Recited:
    """Stands for the harness's model: the same answers whatever is asked."""

    def __new__(cls, answers: list[str]) -> Any:
        from lm_eval.api.model import LM

        class Model(LM):
            def generate_until(self, requests: list[Any]) -> list[str]:
                return [answers[request.doc_id] for request in requests]

            def loglikelihood(self, requests: list[Any]) -> list[Any]:
                raise NotImplementedError

            def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
                raise NotImplementedError

        return Model()


# completion, answer of the file, what each extraction finds ("" for nothing), whether that is right
ANSWERS = [
    ("so 7.\n#### 7", "x\n#### 7", "7", "7", "", "sf"),
    ("#### 1,234", "#### 1234", "1,234", "1,234", "", "sf"),
    ("#### 1234", "#### 1,234", "1234", "1234", "", "sf"),
    ("It costs $18.", "#### 18", "", "$18.", "", "f"),
    ("#### $18", "#### 18", "", "$18", "", "f"),
    ("#### 2.50", "#### 2.50", "2.50", "2.50", "", "sf"),
    ("#### 18.0", "#### 18", "18.0", "18.0", "", ""),  # compared as text
    ("#### -5", "#### -5", "-5", "-5", "", "sf"),
    ("#### 42.", "#### 42", "42.", "42.", "", "sf"),
    ("#### 3\nThen 4", "#### 3", "3", "4", "", "s"),  # strict takes the first, flexible the last
    ("I do not know", "#### 3", "", "", "", ""),
    ("", "#### 3", "", "", "", ""),
    ("2 + 3 = 5. The answer is: 5", "#### 5", "", "5", "5", "fa"),
    ("The answer is: $1,200.50.", "#### 1200.50", "", "$1,200.50.", "$1,200.50", "fa"),
    ("The answer is: -$7", "#### -7", "", "-$7", "-$7", "fa"),
    ("The answer is 1. No. The answer is: 9", "#### 9", "", "9", "9", "fa"),
    ("The answer is: nine, 9", "#### 9", "", "9", "", "f"),
    ("#### 8", "8", "8", "8", "", "sf"),  # a file with nothing but the number
]


@pytest.mark.parametrize("extraction", ["strict-match", "flexible-extract", "answer-is"])
def test_numbers_are_found_and_compared(extraction):
    column = {"strict-match": 2, "flexible-extract": 3, "answer-is": 4}[extraction]
    asked = [Exchange.of(f"question {i}", row[1]) for i, row in enumerate(ANSWERS)]
    docs = scoring.make_docs(asked, template="plain", tokenizer=None)
    completions = Recited([row[0] for row in ANSWERS])
    found = scoring.score_with(completions, docs, stops=(), max_new_tokens=9, extraction=extraction)
    for answered, row in zip(found.answers, ANSWERS, strict=True):
        assert answered.extracted == (row[column] or "[invalid]"), row
        assert answered.right == (extraction[0] in row[5]), row
        assert (answered.completion, answered.gold) == (row[0], row[1].rpartition("#### ")[2])
    for name, count in zip(("strict-match", "flexible-extract", "answer-is"), (8, 14, 4), strict=True):
        assert sum(name[0] in row[5] for row in ANSWERS) == count
        assert found.accuracies[name] == pytest.approx(count / len(ANSWERS))


def test_the_interval_is_wilsons():
    """By the formula of 1927."""
    z2 = NormalDist().inv_cdf(0.975) ** 2
    for n in (1, 7, 1319):
        for k in {0, 1, n // 3, n}:
            answers = [scoring.Answered("", "", "", "", "", right=i < k) for i in range(n)]
            low, high = scoring.Score("strict-match", {"strict-match": k / n}, answers).interval("strict-match")
            p = k / n
            centre, half = (p + z2 / (2 * n)), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2)))
            expected = [(centre + sign * half) / (1 + z2 / n) for sign in (-1, 1)]
            assert (low, high) == pytest.approx(expected, abs=1e-12) and 0 <= low <= high <= 1


def test_what_cannot_be_scored_is_refused(run, data, tmp_path):
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"question": "a", "answer": "#### 1"}\n{"question": "a", "answer": "The answer is one"}\n')
    out = ("--out", tmp_path / "out.jsonl")
    cases = [
        (["--model", run, "--data", wrong], DataError, "The answer to question 2 ends in 'The answer is one'"),
        (["--model", run, "--data", data, "--max-new-tokens", 510], ConfigError, "lower --max-new-tokens"),
        (["--model", run / "model", "--data", data], ConfigError, "give --template"),
        (["--model", run, "--data", data, "--template", "chat"], ConfigError, "has no chat template"),
        (["--model", tmp_path / "none", "--data", data, "--template", "plain"], MatrixSSLError, "does not exist"),
        (["--model", run, "--data", tmp_path / "none.jsonl"], DataError, "No such file"),
    ]
    for words, error, message in cases:
        with pytest.raises(error, match=message):
            command(*words, *out)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "environment.json").write_text("{}")
    with pytest.raises(RunFolderError, match="not complete"):
        command("--model", begun, "--data", data)
    assert not (tmp_path / "out.jsonl").exists()


def test_stops_and_extraction_follow_the_template():
    assert scoring.default_extraction("metamath") == "answer-is"
    assert scoring.default_extraction("plain") == scoring.default_extraction("chat") == "strict-match"
    question = Exchange.of(f"{random.Random(0).random()}", "1")
    text = prompt(question, "metamath", llm_toys.tokenizer())
    assert all(stop in text for stop in scoring.STOPS["metamath"])  # what a model writes that goes on to a new question
