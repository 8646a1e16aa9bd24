"""Generated text for ``llm_arms.py``: arithmetic in many words to pre-train on, and one narrow kind of word problem.

Every word and every number from 0 to ``LARGEST`` is one token, so a wrong number is often a near one. Problems tell
what two people have; the question asks for one of them, and the answer keeps account of what changes:

    Ann has 25 new pens . Ben sells 4 pens today . Ben gives Ann 7 pens . Ann loses 3 old pens . How many pens has Ann ?
    25 + 7 = 32 ; 32 - 3 = 29 #### 29

All problems have the same number of tokens, and so have all answers: batches need no filler.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from matrix_ssl.llm.data.examples import Examples, make_examples
from matrix_ssl.llm.data.templates import Exchange
from matrix_ssl.llm.tiny import END, FILLER

LARGEST = 49
MARK = "####"  # the number behind it is the answer
NAMES = ("Ann", "Ben", "Carl", "Dora", "Eve", "Finn", "Gina", "Hugo", "Ida", "Jon")
THINGS = ("pens", "books", "cards", "coins", "stamps", "shells", "stones", "apples", "pears", "nuts", "keys", "cups")
PROMPT, ANSWER = 30, 14  # tokens, the end among those of the answer

# Pre-training: a and b are drawn, c is what they make. Stories use the verbs of the problems in other sentences.
SUMS = (
    "{a} + {b} = {c} .",
    "{a} plus {b} is {c} .",
    "{b} more than {a} is {c} .",
    "if you add {b} to {a} you get {c} .",
    "{name} had {a} {things} , then {b} came , which makes {c} .",
    "after {name} buys {b} {things} , the {a} are {c} .",
    "after {name} finds {b} {things} , the {a} are {c} .",
    "now {name} has {c} {things} : {a} old and {b} new .",
)
DIFFERENCES = (
    "{a} - {b} = {c} .",
    "{a} minus {b} is {c} .",
    "{b} less than {a} is {c} .",
    "if you take {b} from {a} you get {c} .",
    "{name} had {a} {things} , then {b} went , which leaves {c} .",
    "after {name} sells {b} {things} , the {a} are {c} .",
    "after {name} loses {b} {things} , the {a} are {c} .",
    "{name} owns {a} {things} and gives {b} to {other} , who thanks ; {c} are left .",
)
PRODUCTS = ("{a} times {b} is {c} .", "{a} boxes with {b} {things} each hold {c} .", "{c} in {a} parts is {b} .")
ORDERS = ("{a} is below {b} .", "{b} is above {a} .", "{name} has {a} {things} , {other} more : {b} .")
RECALLS = (
    "{name} had {a} {things} and {other} had {x} . {name} : {a} .",
    "{name} had {a} and {other} had {x} {things} . {other} : {x} .",
)
HAD = ("{name} had {a} {things} .", "{name} with {a} {things} .")  # a tale begins so, changes, and is summed up
MORE = ("then {name} buys {b} .", "{name} finds {b} .", "{other} gives {b} to {name} .", "{b} came to {name} .")
LESS = ("then {name} sells {b} .", "{name} loses {b} .", "{name} gives {b} to {other} .", "{b} went from {name} .")
COUNTS = "count by {b} : {a} {0} {1} {2} {3} ."

KINDS = {"sum": 3, "difference": 3, "tale": 3, "recall": 1, "product": 1, "order": 1, "count": 1}  # shares

STARTS = ("{name} has {a} new {things} .", "{name} owns {a} {things} today .", "{name} starts with {a} {things} .")
GAINS = ("{name} buys {b} more {things} .", "{name} finds {b} other {things} .", "{other} gives {name} {b} {things} .")
LOSSES = ("{name} sells {b} {things} today .", "{name} loses {b} old {things} .", "{name} gives {other} {b} {things} .")
ASIDES = (*STARTS, *GAINS[:2], *LOSSES[:2])  # of the person who is not asked about
QUESTION = "How many {things} has {name} ?"


def tokenizer() -> Any:
    """One token for each word and number that the templates can write, as a tokenizer of transformers."""
    texts = (
        *SUMS,
        *DIFFERENCES,
        *HAD,
        *MORE,
        *LESS,
        *RECALLS,
        *PRODUCTS,
        *ORDERS,
        COUNTS,
        *STARTS,
        *GAINS,
        *LOSSES,
        QUESTION,
    )
    words = {word for text in texts for word in text.split() if not word.startswith("{")}
    numbers = [str(number) for number in range(LARGEST + 1)]  # first, so that the token of a number is the number
    every = [*numbers, END, FILLER, MARK, *sorted(words | {*NAMES, *THINGS})]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(every)}, unk_token=FILLER))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=FILLER)


def sentences(seed: int) -> Iterator[str]:
    """Sentences to pre-train on, without end; all of their numbers are up to ``LARGEST``."""
    draw = random.Random(f"pre-training {seed}")
    while True:
        yield _sentence(draw)


def _sentence(draw: random.Random) -> str:
    kind = draw.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    name, other = draw.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": draw.choice(THINGS), "x": draw.randint(0, LARGEST)}
    if kind == "count":
        step = draw.randint(1, LARGEST // 5)
        a = draw.randint(0, LARGEST - 4 * step)
        return COUNTS.format(*(a + i * step for i in range(1, 5)), a=a, b=step)
    if kind == "product":
        a = draw.randint(1, 12)
        b = draw.randint(1, LARGEST // a)
        return draw.choice(PRODUCTS).format(a=a, b=b, c=a * b, **words)
    if kind == "tale":
        changes = draw.randint(1, 3)
        told, account = tell(draw, words, HAD, MORE, LESS, have=draw.randint(0, LARGEST), most=LARGEST, changes=changes)
        aside = draw.choice(HAD).format(**words | {"name": other, "a": words["x"]})
        told.insert(draw.randint(0, 1) * len(told), aside)
        return f"{' '.join(told)} {name} : {' ; '.join(account)} ."
    low, high = sorted(draw.sample(range(LARGEST + 1), 2))
    if kind in ("order", "recall"):
        return draw.choice(ORDERS if kind == "order" else RECALLS).format(a=low, b=high, **words)
    b = draw.randint(0, min(high, LARGEST // 3)) if draw.random() < 0.5 else low  # small steps as often as any
    if kind == "difference":
        return draw.choice(DIFFERENCES).format(a=high, b=b, c=high - b, **words)
    return draw.choice(SUMS).format(a=high - b, b=b, c=high, **words)


def tell(
    draw: random.Random,
    words: Mapping[str, Any],
    starts: Sequence[str],
    gains: Sequence[str],
    losses: Sequence[str],
    *,
    have: int,
    most: int,
    changes: int,
) -> tuple[list[str], list[str]]:
    """Sentences with a start and changes of at most ``most``, never below 0 or above ``LARGEST``, and the equations."""
    told, account = [draw.choice(starts).format(a=have, **words)], []
    for _ in range(changes):
        gain = draw.random() < 0.5 if 1 < have < LARGEST - 1 else have <= 1
        b = draw.randint(1, min(most, LARGEST - have if gain else have))
        after = have + b if gain else have - b
        told.append(draw.choice(gains if gain else losses).format(b=b, **words))
        account.append(f"{have} {'+' if gain else '-'} {b} = {after}")
        have = after
    return told, account


def problems(n: int, *, seed: int | str, without: frozenset[str] = frozenset()) -> list[Exchange]:
    """Different problems, none of them among the questions ``without``."""
    draw, found = random.Random(f"problems {seed}"), dict[str, str]()
    while len(found) < n:
        asked, answer = _problem(draw)
        if asked not in without:
            found[asked] = answer
    return [Exchange.of(asked, answer) for asked, answer in found.items()]


def _problem(draw: random.Random) -> tuple[str, str]:
    name, other = draw.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": draw.choice(THINGS)}
    told, account = tell(draw, words, STARTS, GAINS, LOSSES, have=draw.randint(10, 35), most=12, changes=2)
    number = draw.randint(1, 35)
    aside = draw.choice(ASIDES).format(name=other, a=number, b=number, things=words["things"])
    told.insert(draw.randint(0, len(told)), aside)
    told.append(QUESTION.format(**words))
    return " ".join(told), f"{' ; '.join(account)} {MARK} {account[-1].rpartition(' ')[2]}"


def question(row: Exchange) -> str:
    """What is asked."""
    return str(row.messages[-1]["content"])


def tokens(rows: list[Exchange], words: Any) -> Tensor:
    """Problems as (n, PROMPT + ANSWER) tokens, made by the code of ``matrix-ssl llm finetune``."""
    examples: Examples = make_examples(rows, template="plain", tokenizer=words, max_length=PROMPT + ANSWER + 1)
    return examples.tokens.long().view(len(rows), PROMPT + ANSWER)


def windows(seed: int, words: Any, *, batch: int, length: int) -> Iterator[Tensor]:
    """Batches (batch, length) of tokens of sentences, each ended by the end token; nothing is read twice."""
    source, left = sentences(seed), list[int]()
    while True:
        while len(left) < batch * length:
            text = f" {END} ".join(next(source) for _ in range(200))
            left += [*words(text)["input_ids"], words.eos_token_id]
        yield torch.tensor(left[: batch * length]).view(batch, length)
        left = left[batch * length :]
