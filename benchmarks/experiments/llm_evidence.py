"""Can matrix cross-entropy help a real language model? Rows of its head, its predictions, and gradients; no training.

    MATRIX_SSL_DATA=… python -m benchmarks.experiments.llm_evidence --model FOLDER       (15 minutes of one core)
    MATRIX_SSL_DATA=… python -m benchmarks.experiments.llm_evidence --model FOLDER --rows 8 --pairs 1

FOLDER holds a causal model with its tokenizer, as ``matrix-ssl llm finetune`` takes it. The model reads answers of the
last problems of GSM8K's training file; the test file is not opened. Four questions:

- How do the cosines of the head's rows spread, and which rows are nearest to a row?
- How much of the predicted probability lies on tokens whose row is near that of the target, and how much near that of
  another target of the same answer, which is the control?
- How far is the gradient of the matrix term from that of the cross-entropy, at every position, by the hidden states?
- The same of the gradient by all weights, beside that of the cross-entropy on other answers.

Every answer and every pair is a file in ``--work``, and the same command goes on. What is there is summarised in
``benchmarks/results/llm_evidence.json``; ``python -m benchmarks.pages.llm_evidence_page`` writes the page.
"""

import argparse
import dataclasses
import importlib.metadata
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from benchmarks.experiments.llm_arms import claim
from benchmarks.harness import RESULTS, ROOT, command
from benchmarks.pages.llm_evidence_page import NEAR, WEIGHTS, summarise_positions
from matrix_ssl.data.hub import quiet_transformers
from matrix_ssl.errors import DataError
from matrix_ssl.llm import Objective, matrix_cross_entropy_terms, models
from matrix_ssl.llm.data.examples import Examples, make_examples
from matrix_ssl.llm.data.question_files import read_rows
from matrix_ssl.llm.data.templates import Exchange
from matrix_ssl.llm.head import Head
from matrix_ssl.matrix import effective_rank
from matrix_ssl.runs.environment import environment
from matrix_ssl.runs.files import read_json, write_json

HELD_OUT = 500  # problems at the end of the training file, which the experiments on GSM8K do not learn
PLAIN = Objective(weight=0.0, chunk=128)
FORMS = {
    "closed": dataclasses.replace(PLAIN, weight=1.0, form="closed"),
    "top": dataclasses.replace(PLAIN, weight=1.0, form="top", top=16),
}
SAMPLED = 2048  # rows whose cosines with all others are measured
BINS, LEAST = 75, -0.5  # of the histograms of cosines, which end at 1
WORDS = (" dollars", " seven", "7", " total", " each", " is", "+", " Janet")
PER_BATCH = 2  # answers whose gradient by all weights is compared

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder of a causal model and its tokenizer.")
    parser.add_argument("--rows", type=int, default=64, help="Answers to read  [default: 64].")
    parser.add_argument("--pairs", type=int, default=3, help="Pairs of batches for gradients by all weights.")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "llm_evidence", help="Folder of what is done.")
    parser.add_argument("--out", type=Path, default=RESULTS / "llm_evidence.json", help="The JSON file to write.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with quiet_transformers():
        tokenizer, model = models.open_tokenizer(arguments.model), models.open_model(arguments.model)
    model.requires_grad_(False).eval()
    claim(arguments.work, {"model": Path(arguments.model).name, "forms": {k: vars(v) for k, v in FORMS.items()}})
    learned, held_out, sha256 = answers(tokenizer)
    where = environment(device="cpu", device_name="cpu", threads=1, processes=1)

    def stage(name: str, compute: Callable[[], Row]) -> Row:
        """What a file holds, or what it is to hold from now on."""
        path = arguments.work / f"{name}.json"
        if not path.exists():
            write_json(path, compute() | {"commit": where["commit"]})
            Console().print(f"{name}.json", highlight=False)
        return dict(read_json(path))

    counts = frequencies(learned, len(model.lm_head.weight))
    spelling = spellings(tokenizer, len(model.lm_head.weight))
    head = stage("head", lambda: rows_of_the_head(model.lm_head.weight, tokenizer, counts, spelling))
    rows = [stage(f"row-{i:03d}", lambda i=i: positions(model, held_out[i], spelling)) for i in range(arguments.rows)]
    first = arguments.rows
    pairs = [
        stage(f"pair-{i:02d}", lambda i=i: pair(model, held_out, first=first + 2 * PER_BATCH * i))
        for i in range(arguments.pairs)
    ]
    ranks = counts.argsort(descending=True, stable=True).argsort()
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "tokenizers")}
    result = {
        "command": command(),
        "model": Path(arguments.model).name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(model.lm_head.weight),
        "width": model.lm_head.weight.shape[1],
        "data_sha256": sha256,
        "objectives": {name: dataclasses.asdict(objective) for name, objective in FORMS.items()},
        "head": head,
        "answers": len(rows),
        "bands": summarise_positions(rows, ranks.tolist(), digits=head["digits"]["tokens"]),
        "answers_per_batch": PER_BATCH,
        "pairs": pairs,
        "environment": where | versions,
    }
    write_json(arguments.out, result)
    Console().print(f"written: {arguments.out}", markup=False)


def answers(tokenizer: Any) -> tuple[Examples, Examples, str]:
    """What may be learned, what is read here, and the identity of the file.

    Raises:
        DataError: MATRIX_SSL_DATA is not set, or the file is missing.
    """
    root = os.environ.get("MATRIX_SSL_DATA")
    if not root:
        raise DataError("MATRIX_SSL_DATA is not set: it is the folder with gsm8k/gsm8k_train.jsonl.gz.")
    rows = read_rows(str(Path(root) / "gsm8k" / "gsm8k_train.jsonl.gz"))
    asked = [Exchange.of(row["question"], without_notes(row["answer"])) for row in rows.rows]
    learned, held_out = (
        make_examples(part, template="plain", tokenizer=tokenizer, max_length=1024)
        for part in (asked[:-HELD_OUT], asked[-HELD_OUT:])
    )
    return learned, held_out, rows.sha256


def without_notes(answer: str) -> str:
    """An answer without what stands in it for a calculator, such as <<48/2=24>>."""
    return re.sub(r"<<.*?>>", "", answer)


def frequencies(examples: Examples, vocabulary: int) -> Tensor:
    """How often every token is learned."""
    counts = torch.zeros(vocabulary, dtype=torch.long)
    for start, end, prompt in zip(examples.starts[:-1], examples.starts[1:], examples.prompts, strict=True):
        counts += torch.bincount(examples.tokens[start + prompt : end].long(), minlength=vocabulary)
    return counts


def spellings(tokenizer: Any, vocabulary: int) -> Tensor:
    """For every token the number of its text in small letters without white space: tokens with one number are alike."""
    numbers: dict[str, int] = {}
    texts = [tokenizer.decode([i]).strip().lower() or f"token {i}" for i in range(vocabulary)]
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])


def rows_of_the_head(weight: Tensor, tokenizer: Any, counts: Tensor, spelling: Tensor) -> Row:
    """How the cosines of rows spread: of rows drawn by chance, and of the tokens that answers use most."""
    unit = F.normalize(weight.detach(), dim=1)
    drawn = torch.randperm(len(unit), generator=torch.Generator().manual_seed(0))[:SAMPLED]
    used = counts.argsort(descending=True, stable=True)[: min(SAMPLED // 2, int((counts > 0).sum()))]
    digits = torch.tensor([i for d in "0123456789" if len(ids := tokenizer(d, add_special_tokens=False).input_ids) == 1
                           for i in ids], dtype=torch.long)  # fmt: skip
    among = unit[digits] @ unit[digits].mT
    return {
        "drawn": spread_of_cosines(unit, drawn, spelling),
        "used": spread_of_cosines(unit, used, spelling),
        "length_of_the_mean": unit.mean(0).norm().item(),
        "effective_rank": effective_rank(unit.mT @ unit).item(),
        "digits": {"tokens": digits.tolist(), "cosine": off_diagonal(among), "squared_cosine": off_diagonal(among**2)},
        "neighbours": neighbours(unit, tokenizer),
    }


def off_diagonal(x: Tensor) -> float | None:
    """The mean of a square matrix without its diagonal."""
    n = len(x)
    return ((x.sum() - x.trace()) / (n * (n - 1))).item() if n > 1 else None


def spread_of_cosines(unit: Tensor, chosen: Tensor, spelling: Tensor) -> Row:
    """Cosines of the chosen rows with all others, and with the nearest one."""
    histogram, nearest, neighbour = torch.zeros(BINS), [], []
    squares, total, counted = 0.0, 0.0, dict.fromkeys(NEAR, 0)
    for part in chosen.split(256):
        cosines = unit[part] @ unit.mT
        cosines[torch.arange(len(part)), part] = -2.0  # itself is no other row
        values = cosines[cosines > -2]
        histogram += torch.histc(values, BINS, LEAST, 1.0)
        squares, total = squares + values.square().sum().item(), total + values.sum().item()
        for near in NEAR:
            counted[near] += int((values >= near).sum())
        best = cosines.max(1)
        nearest.append(best.values)
        neighbour.append(best.indices)
    values, others = torch.cat(nearest), torch.cat(neighbour)
    pairs = len(chosen) * (len(unit) - 1)
    return {
        "rows": len(chosen),
        "mean": total / pairs,
        "squared": squares / pairs,
        "histogram": (histogram / histogram.sum()).tolist(),
        "nearest_histogram": (torch.histc(values, BINS, LEAST, 1.0) / len(values)).tolist(),
        "nearest": quantiles(values),
        "nearest_is_a_spelling": (spelling[chosen] == spelling[others]).float().mean().item(),
        "others_at_least": {str(near): counted[near] / len(chosen) for near in NEAR},
    }


def quantiles(values: Tensor) -> Row:
    """Of a sample."""
    points = (0.05, 0.25, 0.5, 0.75, 0.95)
    return dict(zip(map(str, points), values.quantile(torch.tensor(points)).tolist(), strict=True))


def neighbours(unit: Tensor, tokenizer: Any) -> Row:
    """The five nearest rows of some tokens."""
    rows = {}
    for word in WORDS:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) == 1:
            best = (unit @ unit[ids[0]]).topk(6)
            texts = [tokenizer.decode([i]) for i in best.indices.tolist()]
            rows[word] = [[text, cosine] for text, cosine in zip(texts, best.values.tolist(), strict=True)][1:]
    return rows


@torch.no_grad()
def positions(model: Any, example: dict[str, list[int]], spelling: Tensor) -> Row:
    """Of one answer: where its predictions lie, and the gradients by the hidden states, at every learned token."""
    ids, labels = torch.tensor([example["input_ids"]]), torch.tensor([example["labels"]])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    weight, kept = model.lm_head.weight, labels[0, 1:] >= 0
    targets = labels[0, 1:][kept]
    q = (hidden[0, :-1][kept] @ weight.mT).softmax(1)
    own = q.gather(1, targets.unsqueeze(1)).squeeze(1)
    tokens, place = targets.unique(return_inverse=True)
    cosines = Head.of(weight, torch.float32).cosines(tokens)
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    rest = q.scatter(1, targets.unsqueeze(1), 0.0)
    alike = (spelling[targets].unsqueeze(1) == spelling).float().mul_(rest).sum(1)
    likeliest = rest.argmax(1)
    return {
        "targets": targets.tolist(),
        "q": own.tolist(),
        "spellings": alike.tolist(),
        "near": masses(rest, cosines[place]),
        "near_another": masses(rest.scatter(1, targets[shuffled].unsqueeze(1), 0.0), cosines[place[shuffled]]),
        "cosine_of_the_likeliest": cosines[place].gather(1, likeliest.unsqueeze(1)).squeeze(1).tolist(),
        "gradients": gradients(hidden, weight, labels, kept),
    }


def masses(rest: Tensor, cosines: Tensor) -> Row:
    """Probability (n,) on rows as near as ``NEAR``, and Σ q_i cos², of tokens that are not the target."""
    return {
        **{str(near): (rest * (cosines >= near)).sum(1).tolist() for near in NEAR},
        "credit": (rest * cosines.square()).sum(1).tolist(),
    }


def gradients(hidden: Tensor, weight: Tensor, labels: Tensor, kept: Tensor) -> Row:
    """Inner products, at every position, of the gradients of cross-entropy and matrix term by the hidden state."""

    def of(objective: Objective) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = hidden.detach().requires_grad_()
            terms = matrix_cross_entropy_terms(x, weight, labels, objective=objective, num_items_in_batch=1)
            gradient = torch.autograd.grad(terms.loss, x)[0]
        return terms.mce.detach(), gradient[0, :-1][kept].double()

    _, plain = of(PLAIN)
    rows: Row = {"ce_ce": plain.square().sum(1).tolist()}
    for name, objective in FORMS.items():
        mce, whole = of(objective)
        term = whole - plain
        rows[name] = {
            "mce": mce.item() / len(plain),
            "ce_term": (plain * term).sum(1).tolist(),
            "term_term": term.square().sum(1).tolist(),
        }
    return rows


def pair(model: Any, examples: Any, *, first: int) -> Row:
    """Gradients by all weights on one batch of answers, and the cross-entropy's on the next one."""
    model.requires_grad_(True)
    plain, *wholes = weight_gradients(model, examples, range(first, first + PER_BATCH), [PLAIN, *FORMS.values()])
    (other,) = weight_gradients(model, examples, range(first + PER_BATCH, first + 2 * PER_BATCH), [PLAIN])
    model.requires_grad_(False)
    length = inner(plain, plain)
    rows: Row = {"other_answers": {"cosine": inner(plain, other) / math.sqrt(length * inner(other, other))}}
    for name, whole in zip(FORMS, wholes, strict=True):
        differ = ((plain > 0) != (whole > 0)).count_nonzero().item() / len(plain)
        term = whole.sub_(plain)
        both, own = inner(plain, term), inner(term, term)
        rows[name] = {
            "cosine": both / math.sqrt(length * own),
            "norm": math.sqrt(own / length),
            "sum": {str(w): (length + w * both) / math.sqrt(length * (length + 2 * w * both + w * w * own))
                    for w in WEIGHTS},
            "signs_that_differ": differ,
        }  # fmt: skip
    return rows


def weight_gradients(model: Any, examples: Any, batch: Sequence[int], objectives: list[Objective]) -> list[Tensor]:
    """For every objective the gradient of its mean over the learned tokens, all weights in one vector."""
    parameters = list(model.parameters())
    totals = [torch.zeros(sum(p.numel() for p in parameters)) for _ in objectives]
    count = sum(sum(label >= 0 for label in examples[i]["labels"]) for i in batch)
    for i in batch:
        ids, labels = (torch.tensor([examples[i][key]]) for key in ("input_ids", "labels"))
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        for total, objective in zip(totals, objectives, strict=True):
            loss = matrix_cross_entropy_terms(
                hidden, model.lm_head.weight, labels, objective=objective, num_items_in_batch=count
            ).loss
            places = total.split([p.numel() for p in parameters])
            for place, part in zip(places, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
                place += part.flatten()
    return totals


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two vectors, summed in float64, a part of them at a time."""
    return sum(
        torch.dot(x.double(), y.double()).item() for x, y in zip(a.split(1 << 22), b.split(1 << 22), strict=True)
    )


if __name__ == "__main__":
    main()
