"""CPU seconds of ``llm diagnose``: of the model, and of all measures, for a model in a folder.

    MATRIX_SSL_DATA=… python -m benchmarks.speed.llm_diagnose --model FOLDER        (a minute)
    python -m benchmarks.speed.llm_diagnose --quick                                 (a tiny model, a made-up text)

One thread, all layers, windows of 512 tokens, no reference; opening the model does not count. The text is the first
problems of GSM8K's training file.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from rich.console import Console

from benchmarks.harness import command_line, save
from matrix_ssl.errors import DataError
from matrix_ssl.llm.data.question_files import read_rows
from matrix_ssl.llm.diagnose.measures import TokenStatistics
from matrix_ssl.llm.diagnose.run import DiagnoseSettings, diagnose
from matrix_ssl.llm.tiny import tiny_llama, tiny_tokenizer

TOKENS = 8192
PROBLEMS = 120  # more than enough for these


def main() -> None:
    parser = command_line(__doc__, "llm_diagnose.json")
    parser.add_argument("--model", help="Folder of a causal model and its tokenizer; not used by --quick.")
    arguments = parser.parse_args()
    if not arguments.quick and arguments.model is None:
        parser.error("--model is required without --quick.")
    with TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("One and two are three.\n" * 200 if arguments.quick else problems(), "utf-8")
        model = tiny(Path(folder) / "tiny", text) if arguments.quick else arguments.model
        result = measure(DiagnoseSettings(model, text, max_tokens=1200 if arguments.quick else TOKENS), Path(folder))
    save(arguments.out, result)
    Console().print(
        f"{result['layers']} layers, {result['tokens']} tokens: {result['seconds']['model']:.1f} s of the model, "
        f"{result['seconds']['measures']:.1f} s of the measures."
    )


def problems() -> str:
    """The first problems as one text."""
    root = os.environ.get("MATRIX_SSL_DATA")
    if not root:
        raise DataError("MATRIX_SSL_DATA is not set: it is the folder with gsm8k/gsm8k_train.jsonl.gz.")
    rows = read_rows(str(Path(root) / "gsm8k" / "gsm8k_train.jsonl.gz")).rows[:PROBLEMS]
    return "\n\n".join(f"{row['question']}\n{row['answer']}" for row in rows)


def tiny(folder: Path, text: Path) -> str:
    """A model for the quick run."""
    tokenizer = tiny_tokenizer([text.read_text("utf-8")])
    tokenizer.save_pretrained(folder)
    tiny_llama(tokenizer, length=1024).save_pretrained(folder)
    return str(folder)


def measure(settings: DiagnoseSettings, folder: Path) -> dict[str, Any]:
    """Seconds of the forward passes and of the measures."""
    seconds = {"model": 0.0, "measures": 0.0}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return call(*args, **options)
            finally:
                seconds[name] += time.process_time() - started

        return run

    from transformers import PreTrainedModel

    with (
        mock.patch.object(PreTrainedModel, "__call__", timed("model", torch.nn.Module.__call__), create=True),
        mock.patch.object(TokenStatistics, "add", timed("measures", TokenStatistics.add)),
        mock.patch.object(TokenStatistics, "measures", timed("measures", TokenStatistics.measures)),
    ):
        result = diagnose(settings, folder / "out", device=torch.device("cpu"))
    about = {key: result[key] for key in ("tokens", "windows", "window")}
    return {"model": Path(settings.model).name, "layers": len(result["rows"]) - 1, **about, "seconds": seconds}


if __name__ == "__main__":
    main()
