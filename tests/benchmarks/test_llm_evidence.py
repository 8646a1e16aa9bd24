"""Evidence on a language model: masses and inner products against loops, statistics by hand, and the chain."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.experiments import llm_evidence, llm_real
from benchmarks.pages import llm_evidence_page, llm_loss_page, llm_real_page
from matrix_ssl.errors import DataError
from tests.benchmarks.test_llm_arms import run
from tests.support import llm_toys

ROOT = Path(__file__).parents[2]


def answer():
    """A tiny model that has learned nothing, and one sequence whose first four tokens are the prompt."""
    ids = llm_toys.tokenizer()("Ann has 3 pens and buys 4. How many?").input_ids
    return llm_toys.llama().requires_grad_(False).eval(), {"input_ids": ids, "labels": [-100] * 4 + ids[4:]}


def test_positions_are_those_of_a_loop():
    model, example = answer()
    spelling = torch.arange(len(model.lm_head.weight)) // 2
    row = llm_evidence.positions(model, example, spelling)
    hidden = model.model(input_ids=torch.tensor([example["input_ids"]])).last_hidden_state[0]
    y = F.normalize(model.lm_head.weight, dim=1)
    for place, t in enumerate(range(3, len(hidden) - 1)):
        target = example["input_ids"][t + 1]
        assert row["targets"][place] == target
        x = hidden[t].clone().requires_grad_()
        q, cosines = (model.lm_head.weight @ x).softmax(0), y @ y[target]
        others = torch.arange(len(q)) != target
        assert row["q"][place] == pytest.approx(q[target].item(), rel=1e-5)
        for near in llm_evidence_page.NEAR:
            expected = q[others & (cosines >= near)].sum().item()
            assert row["near"][str(near)][place] == pytest.approx(expected, rel=1e-4, abs=1e-7)
        credit = (q * cosines.square())[others].sum()
        assert row["near"]["credit"][place] == pytest.approx(credit.item(), rel=1e-4)
        other = target ^ 1  # the one with the same spelling
        assert row["spellings"][place] == pytest.approx(q[other].item(), rel=1e-5)
        ce = torch.autograd.grad(-q[target].log(), x, retain_graph=True)[0]
        term = torch.autograd.grad(-(q[target] + credit + 0.01).log(), x)[0]
        found = row["gradients"]
        assert found["ce_ce"][place] == pytest.approx(ce.square().sum().item(), rel=1e-4)
        assert found["closed"]["ce_term"][place] == pytest.approx((ce @ term).item(), rel=2e-3)
        assert found["closed"]["term_term"][place] == pytest.approx(term.square().sum().item(), rel=2e-3)


def test_gradients_by_weights_are_those_of_the_whole_model():
    model, example = answer()
    model.requires_grad_(True)
    (gradient,) = llm_evidence.weight_gradients(model, [example], [0], [llm_evidence.PLAIN])
    ids, labels = (torch.tensor([example[key]]) for key in ("input_ids", "labels"))
    model(input_ids=ids, labels=labels).loss.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    row = llm_evidence.pair(model, [example] * 4, first=0)
    assert row["other_answers"]["cosine"] == pytest.approx(1)  # they are the same ones
    for form in llm_evidence.FORMS:
        cosine, norm = row[form]["cosine"], row[form]["norm"]
        expected = (1 + 3 * cosine * norm) / math.sqrt(1 + 6 * cosine * norm + 9 * norm**2)
        assert row[form]["sum"]["3.0"] == pytest.approx(expected, rel=1e-4)


def test_bands_and_their_cosines():
    """Two positions whose gradients are known vectors."""
    g, h = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    inner = {"ce_term": (g * h).sum(1).tolist(), "term_term": (h * h).sum(1).tolist()}
    masses = {**{str(near): [0.1, 0.3] for near in llm_evidence_page.NEAR}, "credit": [0.0, 0.2]}
    row = {"targets": [5, 6], "q": [0.5, 0.25], "spellings": [0.0, 0.1], "near": masses, "near_another": masses,
           "cosine_of_the_likeliest": [0.0, 1.0],
           "gradients": {"ce_ce": (g * g).sum(1).tolist(), "closed": inner, "top": inner}}  # fmt: skip
    bands = llm_evidence_page.summarise_positions([row], [0, 0, 0, 0, 0, 3, 2000], digits=[6])
    assert {name: band["positions"] for name, band in bands.items()} == {
        "all tokens": 2, "the 10 most frequent": 1, "rarer": 1, "digits": 1, "all but digits": 1
    }  # fmt: skip
    assert bands["digits"]["q"] == 0.25
    whole, term = bands["all tokens"], bands["all tokens"]["gradients"]["closed"]
    assert whole["ce"] == pytest.approx((math.log(2) + math.log(4)) / 2)
    flat, other = g.flatten(), h.flatten()
    assert term["cosine"] == pytest.approx(flat @ other / np.linalg.norm(flat) / np.linalg.norm(other))
    total = flat + 3 * other
    expected = flat @ total / np.linalg.norm(flat) / np.linalg.norm(total)
    assert term["sum"]["3.0"] == pytest.approx(expected)
    assert term["quartiles"] == pytest.approx([0.25, 0.5, 0.75])


def test_short_problems_of_two_steps_without_notes():
    rows = [
        {"question": "q", "answer": "2+3=<<2+3=5>>5\n5*2=<<5*2=10>>10\n#### 10"},
        {"question": "q", "answer": "2+3=5\n#### 5"},
        {"question": "q" * 400, "answer": "2+3=5\n5*2=10\n#### 10"},
    ]
    assert llm_real.chosen(rows, llm_real.Settings()) == [{"question": "q", "answer": "2+3=5\n5*2=10\n#### 10"}]


def test_rates_and_seeds_are_chosen_by_the_plan():
    trials = [{"arm": arm, "rate": rate, "after": {"eval_ce": ce}}
              for arm, ces in (("ce", (2, 1, 1)), ("closed", (1, 2, 3)), ("top", (3, 2, 1)))
              for rate, ce in zip((1e-5, 2e-5, 4e-5), ces, strict=True)]  # fmt: skip
    assert llm_real_page.chosen_rates(trials) == {"ce": 2e-5, "closed": 1e-5, "top": 4e-5}
    rows = [{"seed": seed, "arm": arm} for seed in (1, 0) for arm in ("top", "ce", "closed")]
    assert llm_real_page.complete_seeds(rows[:-1]) == [{"seed": 1, "arm": arm} for arm in llm_real_page.ARMS]


def test_data_that_are_missing(monkeypatch):
    monkeypatch.delenv("MATRIX_SSL_DATA", raising=False)
    with pytest.raises(DataError, match="MATRIX_SSL_DATA is not set"):
        llm_real.problems(llm_real.QUICK)


@pytest.mark.slow
def test_the_chain_runs_and_goes_on(tmp_path, monkeypatch):
    root = os.environ.get("MATRIX_SSL_DATA")
    if not root or not (Path(root) / "gsm8k").is_dir():
        pytest.skip("MATRIX_SSL_DATA has no gsm8k")
    pytest.importorskip("lm_eval")
    run("experiments.llm_real", "--quick", "--work", tmp_path)
    result = json.loads((tmp_path / "llm_real.json").read_text())
    assert [(row["seed"], row["arm"]) for row in result["rows"]] == [(s, a) for s in (0, 1) for a in llm_real_page.ARMS]
    text = llm_real_page.section(result)
    assert "| CE + MCE, closed |" in text and "| before | – |" in text
    monkeypatch.setattr(llm_real, "command", None)  # nothing is computed again
    run("experiments.llm_real", "--quick", "--work", tmp_path)
    assert json.loads((tmp_path / "llm_real.json").read_text()) == result


def test_the_page_is_of_the_results():
    text = (ROOT / "docs" / "results" / "llm-evidence.md").read_text("utf-8")
    for name, marker, page in (("llm_evidence", "evidence", llm_evidence_page), ("llm_real", "real", llm_real_page)):
        shown = text.partition(f"<!-- {marker}:begin -->")[2].partition(f"<!-- {marker}:end -->")[0].strip()
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        assert shown == (page.section(json.loads(path.read_text())).strip() if path.exists() else "Not run yet.")


@pytest.mark.slow
def test_benchmarks_of_time_run(tmp_path):
    pytest.importorskip("tokenizers")
    run("speed.llm_head", "--quick", "--out", tmp_path / "head.json")
    text = llm_loss_page.head_section(json.loads((tmp_path / "head.json").read_text()))
    assert text.count("| 64, 8, 16 |") == 2 and "zipf" in text and "uniform" in text
    run("speed.llm_diagnose", "--quick", "--out", tmp_path / "diagnose.json")
    result = json.loads((tmp_path / "diagnose.json").read_text())
    assert result["layers"] == 2 and result["tokens"] == 1024
    assert all(value > 0 for value in result["seconds"].values())
