"""Benchmarks of language models: problems solved apart, losses and statistics of other libraries, runs that go on."""

import importlib
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from benchmarks.experiments import llm_arms, llm_gsm8k, llm_problems
from benchmarks.pages import llm_arms_page
from matrix_ssl.errors import DataError, RunFolderError
from matrix_ssl.llm.tiny import tiny_llama
from tests.support import llm_toys  # noqa: F401  imports transformers quietly and offline

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "llm-arms.md"
GAIN, LOSS = r"{} (?:buys|finds) (\d+)|\w+ gives {} (\d+)", r"{} (?:sells|loses) (\d+)|{} gives \w+ (\d+)"


def run(script, *arguments):
    """Runs a script in this process, which has imported transformers already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        importlib.import_module(f"benchmarks.{script}").main()


def solve(question):
    """The number of a problem and its account, read sentence by sentence with other means than the generator's."""
    *told, asked = question.split(" . ")
    name = re.fullmatch(r"How many \w+ has (\w+) \?", asked)[1]
    have, account = None, []
    for sentence in told:
        if found := re.match(rf"{name} (?:has|owns|starts with) (\d+)", sentence):
            have = int(found[1])
        for sign, pattern in (("+", GAIN), ("-", LOSS)):
            if found := re.match(pattern.replace("{}", name), sentence):
                b = int(found[1] or found[2])
                after = have + b if sign == "+" else have - b
                account.append(f"{have} {sign} {b} = {after}")
                have = after
    return have, " ; ".join(account)


class TestProblems:
    def test_answers_are_right(self):
        rows = llm_problems.problems(500, seed=3)
        for row in rows:
            number, account = solve(llm_problems.question(row))
            assert row.answer == f"{account} #### {number}"
            assert account.count("=") == 2
        assert len({solve(llm_problems.question(row))[0] for row in rows}) > 40
        places = set()
        for row in rows:
            *told, asked = llm_problems.question(row).split(" . ")
            name = asked.split()[-2]
            places |= {i for i, sentence in enumerate(told) if not re.search(rf"{name}\b", sentence)}
        assert places == {0, 1, 2, 3}  # where the sentence stands that does not matter

    def test_all_have_one_length_and_no_filler(self):
        words = llm_problems.tokenizer()
        found = llm_problems.tokens(llm_problems.problems(300, seed=1), words)
        assert found.shape == (300, llm_problems.PROMPT + llm_problems.ANSWER)
        assert not (found == words.pad_token_id).any()  # which is also the token of unknown words
        assert (found[:, -1] == words.eos_token_id).all() and (found[:, :-1] != words.eos_token_id).all()
        assert (found[:, -3] == words.convert_tokens_to_ids("####")).all()
        assert [words.convert_tokens_to_ids(str(n)) for n in (0, 7, 49)] == [0, 7, 49]

    def test_a_draw_is_its_seed_and_leaves_out_what_it_must(self):
        first = [llm_problems.question(row) for row in llm_problems.problems(50, seed=1)]
        assert first == [llm_problems.question(row) for row in llm_problems.problems(50, seed=1)]
        assert len(set(first)) == 50
        without = frozenset(first[:25])
        others = [llm_problems.question(row) for row in llm_problems.problems(50, seed=1, without=without)]
        assert others[:25] == first[25:]
        assert set(first) & {llm_problems.question(row) for row in llm_problems.problems(50, seed=2)} == set()

    def test_sentences_are_true(self):
        source, kinds = llm_problems.sentences(0), set()
        for sentence in (next(source) for _ in range(4000)):
            numbers = [int(word) for word in sentence.split() if word.isdigit()]
            assert all(0 <= number <= llm_problems.LARGEST for number in numbers)
            if found := re.search(r"(\d+) ([+-]|plus|minus|times) (\d+) (?:=|is) (\d+)", sentence):
                a, b, c = int(found[1]), int(found[3]), int(found[4])
                assert c == {"+": a + b, "plus": a + b, "-": a - b, "minus": a - b, "times": a * b}[found[2]]
                kinds.add(found[2])
            elif found := re.match(r"(\d+) (more|less) than (\d+) is (\d+)", sentence):
                assert int(found[4]) == int(found[3]) + int(found[1]) * {"more": 1, "less": -1}[found[2]]
                kinds.add(found[2])
            elif found := re.match(r"(\d+) is (below|above) (\d+)", sentence):
                assert (int(found[1]) < int(found[3])) == (found[2] == "below")
                kinds.add(found[2])
            elif sentence.startswith("count"):
                assert {b - a for a, b in pairwise(numbers[1:])} == {numbers[0]}
                kinds.add("count")
        assert kinds == {"+", "-", "plus", "minus", "times", "more", "less", "below", "above", "count"}

    def test_pretraining_holds_no_problem(self):
        source = llm_problems.sentences(0)
        text = " ".join(next(source) for _ in range(2000))
        assert "How many" not in text and "####" not in text and ";" in text

    def test_windows_are_one_stream(self):
        words = llm_problems.tokenizer()
        source, batches = llm_problems.sentences(5), llm_problems.windows(5, words, batch=3, length=7)
        found = torch.cat([next(batches).flatten() for _ in range(4)]).tolist()
        text = " </s> ".join(next(source) for _ in range(40))
        assert found == words(text)["input_ids"][: len(found)]


@pytest.fixture(scope="module")
def model():
    words = llm_problems.tokenizer()
    made = tiny_llama(words, d=16, layers=1, heads=2, length=64, seed=0)
    torch.nn.init.normal_(made.lm_head.weight, 0.3, 1.0)  # rows that are far from orthogonal
    return made


@pytest.fixture(scope="module")
def ids():
    return llm_problems.tokens(llm_problems.problems(4, seed=0), llm_problems.tokenizer())


def gradient(value, model):
    return torch.autograd.grad(value, model.lm_head.weight)[0]


class TestArms:
    def of_answers(self, model, ids):
        """Logits and targets of the answers alone, by the model's own forward."""
        given = llm_problems.PROMPT
        return model(ids).logits[:, given - 1 : -1].flatten(0, 1), ids[:, given:].flatten()

    @pytest.mark.parametrize(("arm", "smoothing"), [("ce", 0.0), ("twice", 0.0), ("smoothing", 0.1)])
    def test_cross_entropy_is_that_of_pytorch(self, model, ids, arm, smoothing):
        ours = llm_arms.loss(model, ids, llm_arms.ARMS[arm])
        theirs = F.cross_entropy(*self.of_answers(model, ids), label_smoothing=smoothing)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(gradient(ours, model), gradient(theirs, model), rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize("arm", ["closed", "top"])
    def test_matrix_term_is_that_of_the_textbook(self, model, ids, arm):
        logits, targets = self.of_answers(model, ids)
        rows = F.normalize(model.lm_head.weight.detach(), dim=1)
        q = logits.softmax(1)
        if arm == "closed":
            term = -((q * (rows @ rows[targets].mT).mT.square()).sum(1) + 0.01).log()
        else:
            kept = torch.where(F.one_hot(targets, q.shape[1]).bool(), torch.inf, logits).topk(16).indices
            parts = rows[kept] * q.gather(1, kept).sqrt().unsqueeze(2)
            values, vectors = torch.linalg.eigh(parts.mT @ parts)
            along = (vectors.mT @ rows[targets].unsqueeze(2)).squeeze(2)
            term = -((values.clamp_min(0) + 0.01).log() * along.square()).sum(1)
        expected = F.cross_entropy(logits, targets) + term.mean()
        torch.testing.assert_close(llm_arms.loss(model, ids, llm_arms.ARMS[arm]), expected, rtol=1e-4, atol=1e-4)

    def test_pretraining_learns_every_token(self, model, ids):
        theirs = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        torch.testing.assert_close(llm_arms.loss(model, ids, llm_arms.ARMS["ce"], given=0), theirs)

    def test_arms_see_the_same_batches(self):
        problems = torch.arange(10).unsqueeze(1)
        first, second = (llm_arms.shuffled(problems, 4, 3) for _ in range(2))
        seen = [next(first) for _ in range(4)]
        assert all(torch.equal(batch, next(second)) for batch in seen)
        assert len(torch.cat(seen[:2]).unique()) == 8  # within an epoch nothing twice, and every batch is full

    def test_rate(self):
        rates = [llm_arms.rate_at(step, 100, 2.0) for step in range(100)]
        assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
        assert rates[5] == 2.0 and rates[-1] < 1e-2
        assert sorted(rates[5:], reverse=True) == rates[5:]

    def test_exact_match(self):
        mark, end = 50, 60
        written = torch.tensor([[1, mark, 7, end], [mark, 8, mark, 7], [1, 2, 3, 7], [1, 2, 3, mark]])
        assert llm_arms.right(written, torch.tensor([7, 7, 7, 7]), mark).tolist() == [True, False, False, False]
        assert llm_arms.right(torch.tensor([[end]]), torch.tensor([end]), mark).tolist() == [False]

    def test_structure_of_the_head(self, model):
        found = llm_arms.structure(model)
        rows = model.lm_head.weight.detach().double().numpy()
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = (rows @ rows.T) ** 2
        off = cosines[~np.eye(len(rows), dtype=bool)]
        assert found["squared_cosine"] == pytest.approx(off.mean())
        assert found["squared_cosine_next_numbers"] == pytest.approx(np.diag(cosines, 1)[: llm_problems.LARGEST].mean())
        values = np.linalg.svd(rows, compute_uv=False)
        assert found["effective_rank"] == pytest.approx(np.exp(scipy.stats.entropy(values / values.sum())))


def made_rows(seeds=6):
    """Results of every arm with accuracies drawn, the first arm's first."""
    draw = np.random.default_rng(0)
    return [
        {"seed": seed, "arm": arm, "rate": 1e-3, "accuracy": 0.5 + i * 0.02 + float(draw.normal(0, 0.03)),
         "ce": 0.2, "seconds": 3.0, "loss": 0.1, "commit": "c"}
        for i, arm in enumerate(llm_arms.ARMS) for seed in range(seeds)
    ]  # fmt: skip


class TestStatistics:
    def test_differences_and_holm(self):
        rows = made_rows()
        found = llm_arms_page.summarise_arms(rows[::-1])  # the order of the rows does not matter
        scores = {arm: [row["accuracy"] for row in rows if row["arm"] == arm] for arm in llm_arms.ARMS}
        tests = {arm: scipy.stats.ttest_rel(scores[arm], scores["ce"]) for arm in llm_arms.ARMS if arm != "ce"}
        ordered = sorted(tests, key=lambda arm: tests[arm].pvalue)
        adjusted = np.maximum.accumulate([min(1, (4 - i) * tests[arm].pvalue) for i, arm in enumerate(ordered)])
        assert dict(zip(ordered, adjusted, strict=True)) == pytest.approx(
            {arm: found[arm]["adjusted_p"] for arm in ordered}
        )
        for arm, test in tests.items():
            interval = test.confidence_interval(0.95)
            ours = found[arm]["difference"]
            assert (ours["low"], ours["high"]) == pytest.approx((interval.low, interval.high))
            assert found[arm]["accuracy"]["sd"] == pytest.approx(np.std(scores[arm], ddof=1))
        assert "difference" not in found["ce"]

    def test_rates_are_chosen_by_the_mean_and_twice_is_twice(self, tmp_path):
        def trial(arm, seed, rate, accuracy):
            return {"arm": arm, "seed": seed, "rate": rate, "accuracy": accuracy}

        scores = {1e-3: (0.5, 0.5), 2e-3: (0.9, 0.2), 4e-3: (0.4, 0.7)}  # means 0.5, 0.55, 0.55: the lower rate
        trials = [trial("ce", seed, rate, two[seed]) for rate, two in list(scores.items())[::-1] for seed in (0, 1)]
        trials += [trial("top", 0, 1e-3, 0.1), trial("top", 0, 4e-3, 0.2)]
        assert llm_arms_page.chosen_rates(trials) == {"ce": 2e-3, "top": 4e-3}
        experiment = llm_arms.Experiment(llm_arms.QUICK, tmp_path)
        experiment.trials = lambda: [*trials, trial("closed", 0, 1e-3, 0.1), trial("smoothing", 0, 5e-4, 0.1)]
        assert experiment.rates() == {"ce": 2e-3, "closed": 1e-3, "top": 4e-3, "twice": 4e-3, "smoothing": 5e-4}

    def test_verdict_needs_significance(self):
        def arm(p, mean):
            return {"adjusted_p": p, "difference": {"mean": mean}}

        text = llm_arms_page.verdict(
            {"ce": {}, "closed": arm(0.04, 0.02), "top": arm(0.06, 0.1), "twice": arm(0.01, -0.1)}
        )
        for found in ("closed: better", "top 16: no significant difference", "twice the rate: worse"):
            assert found in text


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    work = tmp_path_factory.mktemp("arms")
    run("experiments.llm_arms", "--quick", "--work", work)
    return work


class TestRun:
    def test_what_it_writes(self, quick):
        found = json.loads((quick / "llm_arms.json").read_text())
        assert [row["arm"] for row in found["rows"]] == list(llm_arms.ARMS)
        assert {row["seed"] for row in found["rows"]} == {0} and {row["seed"] for row in found["trials"]} == {100}
        assert len(found["trials"]) == 4 * 2  # as many for each arm that is tuned
        rates = {row["arm"]: row["rate"] for row in found["rows"]}
        assert rates["twice"] == 2 * rates["ce"]
        assert {"commit", "torch", "transformers", "processor"} <= found["environment"].keys()
        assert all(0 <= row["accuracy"] <= 1 and row["ce"] > 0 for row in found["rows"] + found["trials"])
        assert all(arm["seconds"]["mean"] > 0 for arm in found["arms"].values())

    def test_every_arm_begins_alike(self, quick, tmp_path):
        """Trials at one rate differ by their loss alone: cross-entropy again, in this process, gives the same file."""
        torch.set_num_threads(1)
        experiment = llm_arms.Experiment(llm_arms.QUICK, tmp_path)
        experiment.folder(100).mkdir()
        model, problems = experiment.pretrained(100), experiment.learned_from(100)
        experiment.run(model, problems, problems[16:], "ce", llm_arms.ARMS["ce"], rate=1e-3, seed=100)
        again, before = (json.loads((folder / "seed-100/ce-0.001.json").read_text()) for folder in (tmp_path, quick))
        assert (again["ce"], again["accuracy"]) == pytest.approx((before["ce"], before["accuracy"]), rel=1e-5)
        assert len(problems) == 24
        assert not any((problems == row).all(1).any() for row in experiment.test)

    def test_the_same_command_goes_on(self, quick):
        made = {path: path.stat().st_mtime_ns for path in quick.glob("seed-*/*") if path.name != ".lock"}
        lost = quick / "seed-0" / "closed-0.001.json"
        lost = lost if lost.exists() else quick / "seed-0" / "closed-0.002.json"
        before = json.loads(lost.read_text())
        lost.unlink()
        run("experiments.llm_arms", "--quick", "--work", quick)
        after = {path: path.stat().st_mtime_ns for path in quick.glob("seed-*/*") if path.name != ".lock"}
        assert {path for path in made if made[path] != after[path]} == {lost}
        assert {**before, "seconds": 0} == {**json.loads(lost.read_text()), "seconds": 0}

    def test_other_constants_are_tried_on_held_out_problems_of_tuning_seeds(self, quick):
        made = {path.name for path in (quick / "seed-0").iterdir()}
        run("experiments.llm_constants", "--quick", "--work", quick)
        assert {path.name for path in (quick / "seed-0").iterdir()} == made
        found = json.loads((quick / "llm_constants.json").read_text())
        assert {row["seed"] for row in found["rows"]} == {100} and len(found["rows"]) == (3 + 5) * 2
        values = {row["arm"]: row["loss"] for row in found["rows"] if row["rate"] == 1e-3}
        assert len(set(values.values())) == len(values)  # every constant makes another loss

    def test_other_settings_are_refused(self, quick):
        with pytest.raises(RunFolderError, match="other settings"):
            llm_arms.Experiment(llm_arms.Settings(), quick)

    def test_processes_share_seeds(self, tmp_path, monkeypatch):
        """A seed that another process holds comes last, when that one has let go."""
        code = (
            "import sys, time\nfrom pathlib import Path\nfrom matrix_ssl.runs import folder\n"
            "with folder.lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "1")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout.readline() == "held\n"
        done = []
        monkeypatch.setattr(llm_arms.time, "sleep", lambda seconds: other.communicate())
        llm_arms.share([1, 2, 3], lambda seed: tmp_path / str(seed), done.append)
        assert done == [2, 3, 1]

    def test_page(self, quick, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("before\n<!-- arms:begin -->\nnot run yet\n<!-- arms:end -->\nafter\n")
        result = json.loads((quick / "llm_arms.json").read_text())
        whole = result | {"arms": llm_arms_page.summarise_arms(made_rows()), "rows": made_rows()}
        for shown in (result, whole):  # one seed has no interval
            llm_arms_page.publish(shown, page)
            text = page.read_text("utf-8")
            assert text.startswith("before\n") and text.endswith("after\n") and "not run yet" not in text
            assert all(title in text for title in llm_arms_page.TITLES.values())
        assert re.search(r"\| CE \+ MCE, closed \| 0.001 \| \d+\.\d ± \d\.\d \| \+\d\.\d \[", text)


def test_the_page_is_of_the_results():
    text = PAGE.read_text("utf-8")
    for name, marker, section in (
        ("llm_arms", "arms", llm_arms_page.section), ("llm_gsm8k", "gsm8k", llm_gsm8k.section)
    ):  # fmt: skip
        shown = text.partition(f"<!-- {marker}:begin -->")[2].partition(f"<!-- {marker}:end -->")[0].strip()
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        assert shown == (section(json.loads(path.read_text())).strip() if path.exists() else "Not run yet.")


class TestGsm8k:
    def test_the_chain_runs(self, tmp_path):
        root = os.environ.get("MATRIX_SSL_DATA")
        if not root or not (Path(root) / "gsm8k").is_dir():
            pytest.skip("MATRIX_SSL_DATA has no gsm8k")
        pytest.importorskip("lm_eval")
        for _ in range(2):  # what was trained is not trained again
            run("experiments.llm_gsm8k", "--quick", "--work", tmp_path)
        found = json.loads((tmp_path / "llm_gsm8k.json").read_text())
        assert found["training"]["steps"] == 2 and found["training"]["counts"]["rows"] == 16
        assert [row["questions"] for row in found["scores"].values()] == [2, 2]
        assert [row["layer"] for row in found["diagnosis"]["rows"]] == [0, 1, 2]
        assert all(row["reference"]["erank"] > 1 for row in found["diagnosis"]["rows"])
        assert "| untrained | 0.0 (0.0–" in llm_gsm8k.section(found)

    def test_it_says_what_is_missing(self, monkeypatch):
        monkeypatch.delenv("MATRIX_SSL_DATA", raising=False)
        with pytest.raises(DataError, match="MATRIX_SSL_DATA is not set"):
            llm_gsm8k.gsm8k(llm_gsm8k.QUICK)
