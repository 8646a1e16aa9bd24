"""Random changes of good files: every parser answers with a result or a named error, within a second of computing."""

import io
import json
import string
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from matrix_ssl.config import RunConfig, override, to_dict
from matrix_ssl.data.kinds.packed import read_shard
from matrix_ssl.encoder.reading import read_tensors
from matrix_ssl.errors import MatrixSSLError
from matrix_ssl.evaluate.detection.annotations import read_annotations
from matrix_ssl.evaluate.feature_rows import open_features
from matrix_ssl.llm.data import chat
from matrix_ssl.llm.data.question_files import exchanges, find_columns, read_rows
from matrix_ssl.llm.data.templates import Exchange, prompt
from matrix_ssl.report.run.data import read_run
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.metrics import read_metrics
from tests.support.chat_tokenizer import ChatTokenizer

SECONDS = 1.0  # of computing that one input may take
_TOKENS = (
    b"[", b"]", b"{", b"}", b'"', b":", b",", b"null", b"true", b"NaN", b"-1", b"1e999", b"9" * 30, b"0.5", b"\\u0000",
    b"\xff\xfe", b"\x00", b"../", b'"a"', b"[" * 200, b"=", b";", b"(", b"none", b"inf", b"{{", b"}}", b"{%", b"%}",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A parser, and good inputs of it."""

    name: str
    inputs: list[bytes]
    parse: Callable[[bytes], object]


def mutate(content: bytes, generator: np.random.Generator) -> bytes:
    """One to four random changes: bytes replaced, cut, repeated, exchanged or added, tokens put in."""
    for _ in range(int(generator.integers(1, 5))):
        n = len(content)
        a, b = sorted(generator.integers(0, n + 1, 2).tolist())
        b = min(b, a + int(generator.integers(1, 64)))
        kind = int(generator.integers(0, 7))
        if kind == 0:
            content = content[:a] + generator.bytes(b - a) + content[b:]
        elif kind == 1:
            content = content[:a] + content[b:]
        elif kind == 2:
            content = content[:a] + content[a:b] * int(generator.integers(2, 9)) + content[b:]
        elif kind == 3:
            content = content[:a]
        elif kind == 4 and n:
            place = int(generator.integers(0, n))
            content = (
                content[:place] + bytes([content[place] ^ 1 << int(generator.integers(0, 8))]) + content[place + 1 :]
            )
        else:
            content = content[:a] + _TOKENS[int(generator.integers(0, len(_TOKENS)))] + content[b if kind == 5 else a :]
    return content


def search(target: Target, *, count: int, seed: int = 0) -> list[str]:
    """What is wrong with the answers to ``count`` inputs; empty where all are results or named errors, in time."""
    generator, wrong = np.random.default_rng(seed), []
    for number in range(count):
        content = mutate(target.inputs[number % len(target.inputs)], generator)
        begun = time.process_time()
        try:
            target.parse(content)
        except MatrixSSLError:
            pass
        except Exception as error:
            wrong.append(f"{target.name}, input {number} of seed {seed}: {type(error).__name__}: {error}")
        if (seconds := time.process_time() - begun) > SECONDS:
            wrong.append(f"{target.name}, input {number} of seed {seed}: {seconds:.1f} s")
    return wrong


def targets(folder: Path) -> Iterator[Target]:
    """The parsers, which read from files in a folder."""

    def file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def parse(content: bytes) -> object:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            return read(folder / name)

        return parse

    yield Target("settings", _settings(), lambda text: override(RunConfig(), [text.decode(errors="replace")]))
    yield Target("packed index", _packed(), file("a.npz", read_shard))
    yield Target("COCO", [_coco()], file("a.json", read_annotations))
    yield Target(
        "checkpoint", _checkpoints(), file("r/checkpoints/step-000000003.safetensors", checkpoint.load_checkpoint)
    )
    yield Target("weights", _weights(), file("a.pth", read_tensors))
    for ending, contents in _features():
        yield Target(f"features, {ending}", contents, file(f"a.{ending}", _read_features))
    yield Target("questions", _questions(), file("q.jsonl", _read_questions))
    yield Target("templates", _templates(), _render)
    yield from _run_files(folder / "run")


def _settings() -> list[bytes]:
    keys = ("epochs=5", "network.width=16", "data.mean=0.1,0.2,0.3", "views.0.flip=0.5", "views.2.count=1", "seed=7",
            "views.0.crop_scale=0.1,0.5", "data.source=a", 'method.options={"a": [1, 2]}', "optimizer.name=sgd",
            "precision=auto", "method.ridge=0.1", "deterministic=true", "start.reference=x")  # fmt: skip
    return [key.encode() for key in keys]


def _packed() -> list[bytes]:
    contents = []
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(
            file, jpeg=np.zeros(6, np.uint8), offs=np.array([0, 3, 6]), y=np.array([0, 1]), classes=np.array(["a", "b"])
        )
        contents.append(file.getvalue())
    return contents


def _coco() -> bytes:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 8.0, "iscrowd": 0}
    shapes: list[Any] = [
        [[1, 1, 5, 1, 5, 5.5]],
        {"size": [9, 9], "counts": [40, 5, 36]},
        {"size": [9, 9], "counts": "X1400"},
    ]
    annotations = [annotation | {"id": number, "segmentation": shape} for number, shape in enumerate(shapes)]
    images = [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}]
    return json.dumps({"images": images, "categories": [{"id": 1, "name": "x"}], "annotations": annotations}).encode()


def _checkpoints() -> list[bytes]:
    values = {"values": json.dumps({"step": 3, "counters": {"bad_steps": 0}, "param_groups": [{"params": [0]}]})}
    tensors = {"model.a": torch.zeros(2), "optimizer.0.momentum_buffer": torch.ones(3)}
    return [checkpoint.encode(tensors, values), checkpoint.encode({"a": torch.zeros(2)}, {})]


def _weights() -> list[bytes]:
    contents = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        file = io.BytesIO()
        torch.save({"state_dict": {"a": torch.zeros(2), "b": {"c": torch.ones(3)}}, "epoch": 3}, file, **options)
        contents.append(file.getvalue())
    return contents


def _features() -> Iterator[tuple[str, list[bytes]]]:
    x, archives = np.arange(12, dtype=np.float32).reshape(4, 3), []
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(file, features=x, data_digest=np.array("a"))
        archives.append(file.getvalue())
    yield "npz", archives
    arrays = []
    for array in (x, np.asfortranarray(x)):
        file = io.BytesIO()
        np.save(file, array)
        arrays.append(file.getvalue())
    yield "npy", arrays
    yield "safetensors", [safetensors.torch.save({"features": torch.from_numpy(x)})]


def _read_features(path: Path) -> object:
    return [len(batch) for batch in open_features(path).batches()]


def _questions() -> list[bytes]:
    rows = [{"question": "one", "answer": "two"}, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant",
            "content": "b"}]}, {"query": "x", "response": "y"}]  # fmt: skip
    return [(json.dumps(row) + "\n").encode() * 3 for row in rows]


def _read_questions(path: Path) -> object:
    rows = read_rows(str(path))
    return exchanges(rows, find_columns(rows))


def _templates() -> list[bytes]:
    return [
        b"{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}",
        b"{% if messages[0].role == 'user' %}{{ messages[-1].content[:3] + 'a' * 3 }}{% endif %}",
        b"{% set ns = namespace(n=0) %}{% for i in range(9) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n | tojson }}",
    ]


def _render(text: bytes) -> object:
    template = text.decode(errors="replace")
    chat.tried[template] = ""  # not a process for each
    try:
        return prompt(Exchange.of("one", "two"), "chat", ChatTokenizer(template))  # type: ignore[arg-type]
    finally:
        del chat.tried[template]


def _run_files(run: Path) -> Iterator[Target]:
    """The JSON of a run folder, a file at a time."""
    config = json.dumps(to_dict(RunConfig())).encode()
    line = {"step": 1, "loss": 1.5, "spectrum": [0.5, 0.5], "alarm": ["Collapse: x"], "effective_rank": 2.0}
    score = {"accuracy": 0.5, "interval": [0.4, 0.6], "mean_per_class": 0.5}
    split = {"images": 9, "classes": 3, "digest": "a"}
    result = {"set": {"train": split, "test": split}, "measures": {"knn_20": score}, "training_images": 9}
    contents = {
        "config.json": config,
        "summary.json": json.dumps(
            {"finished": True, "steps": 3, "data": {"name": string.printable, "images": 3}}
        ).encode(),
        "environment.json": b'{"python": "3", "command": ["a"]}',
        "metrics.jsonl": (json.dumps(line) + "\n").encode() * 3,
        "evaluation/a/knn.json": json.dumps(result).encode(),
    }
    for name, content in contents.items():
        for other, good in contents.items():
            (run / other).parent.mkdir(parents=True, exist_ok=True)
            (run / other).write_bytes(good)

        def parse(changed: bytes, path: Path = run / name, good: bytes = content) -> object:
            path.write_bytes(changed)
            try:
                data = read_run(run)
                tables = [table.markdown() for one in data.evaluations for table in one.tables()]
                return tables, data.log.alarms(), data.log.curve("loss", "loss"), read_metrics(run)
            finally:
                path.write_bytes(good)

        yield Target(f"run folder, {name}", [content], parse)
