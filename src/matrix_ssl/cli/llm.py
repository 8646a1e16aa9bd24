"""The commands ``matrix-ssl llm finetune``, ``score`` and ``diagnose``."""

import logging
from pathlib import Path
from typing import get_args

import click

from matrix_ssl.cli import options
from matrix_ssl.errors import ConfigError
from matrix_ssl.llm.data.templates import Extraction, TemplateName
from matrix_ssl.llm.finetune.settings import MODEL, RESULT, FineTuneSettings

_template = click.Choice(get_args(TemplateName))
_columns = click.option("--columns", metavar="NAMES", help="Columns with questions and answers, with a comma "
                        "between, or one with messages.  [default: question,answer or query,response or "
                        "messages]")  # fmt: skip


@click.group()
def llm() -> None:
    """Language models: fine-tune with matrix cross-entropy, score and diagnose."""
    for library in ("bitsandbytes", "lm_eval"):  # they warn of kernels and of a model that is passed as an object
        logging.getLogger(library).setLevel(logging.ERROR)


def _names(columns: str | None) -> tuple[str, ...]:
    return tuple(columns.split(",")) if columns else ()


@llm.command()
@click.option("--model", required=True, metavar="FOLDER|NAME|config:PATH", help="Model: a folder in safetensors "
              "with its tokenizer, a name of the Hugging Face hub, or a configuration for random "
              "weights.")  # fmt: skip
@click.option("--data", required=True, metavar="FILE|hf:NAME", help="Questions and answers: .jsonl, .jsonl.gz, a list "
              "in .json, or a dataset of the hub.")  # fmt: skip
@click.option("--template", type=_template, required=True, help="Template that turns a question into a prompt.")
@_columns
@click.option("--load-in-4bit", is_flag=True, help="Hold the linear layers below the adapters in four bits (QLoRA); "
              "needs --set lora=RANK.")  # fmt: skip
@options.assignments("Change a setting, or an argument of transformers' TrainingArguments")
@options.out(None)
@options.fresh
@options.device
def finetune(
    model: str, data: str, template: TemplateName, columns: str | None, load_in_4bit: bool,
    assignments: tuple[str, ...], out: Path, fresh: bool, device: str,
) -> None:  # fmt: skip
    """Fine-tune a language model on questions and answers. Run the same command to resume.

    Only answers are learned. docs/llm.md lists the settings: objective.weight, epochs, batch_size, learning_rate, lora
    and others. Their defaults are MetaMath's.
    """
    settings = FineTuneSettings(model=model, data=data, template=template, columns=_names(columns))
    settings = settings.override([*(["load_in_4bit=true"] if load_in_4bit else []), *assignments])
    from matrix_ssl import distributed
    from matrix_ssl.data.hub import quiet_transformers
    from matrix_ssl.llm.finetune import run as runs
    from matrix_ssl.runs.session import session

    with session(device) as s, quiet_transformers():
        with distributed.together():
            prepared = runs.prepare(settings, out, device=s.device)
        result = out / RESULT
        if not s.claim(out, prepared.description, is_complete=result.exists, fresh=fresh, packages=runs.PACKAGES):
            s.display.say(prepared.headline())
            if prepared.examples.cut or prepared.examples.dropped:
                s.display.say(
                    f"max_length={settings.max_length} truncates {prepared.examples.cut} sequences and skips "
                    f"{prepared.examples.dropped} rows whose answer would be cut off entirely."
                )
            runs.run(prepared, out, display=s.display)
        if s.main:
            options.show(model=out / MODEL, result=result)


@llm.command()
@click.option("--model", required=True, metavar="FOLDER|NAME", help="Model: a run of finetune, a folder, or a "
              "name of the Hugging Face hub.")  # fmt: skip
@click.option("--task", type=click.Choice(["gsm8k"]), default="gsm8k", show_default=True, help="Benchmark.")
@click.option("--data", required=True, metavar="FILE|hf:NAME", help="Questions with answers "
              "that end in #### and a number.")  # fmt: skip
@_columns
@click.option("--template", type=_template, help="Template that turns a question into a prompt.  "
              "[default: that of the run]")  # fmt: skip
@click.option("--extract", "extraction", type=click.Choice(get_args(Extraction)), help="Rule that extracts the number "
              "from an answer.  [default: answer-is with the template metamath, else strict-match]")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Score only the first N questions.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Questions per batch.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=512, show_default=True, help="Maximum tokens per answer."
)
@click.option("--out", type=options.PATH, metavar="FILE", help="File with a line for each question; the accuracies "
              "are written beside it, as .json.  [default: TASK.jsonl in the folder of the model]")  # fmt: skip
@options.device
def score(
    model: str, task: str, data: str, columns: str | None, template: TemplateName | None, extraction: Extraction | None,
    limit: int | None, batch_size: int, max_new_tokens: int, out: Path | None, device: str,
) -> None:  # fmt: skip
    """Let a language model answer questions and count the right answers, by lm-evaluation-harness."""
    from matrix_ssl.data.hub import quiet_transformers
    from matrix_ssl.llm import models
    from matrix_ssl.llm import score as scoring
    from matrix_ssl.llm.data import question_files
    from matrix_ssl.runs import devices
    from matrix_ssl.runs.files import check_writable, write_json

    place, settings = models.find_model(model)
    chosen: TemplateName | None = template or settings.get("template")
    if chosen is None:
        raise ConfigError(f"{model} does not record the template it was trained with: give --template.")
    out = out or (Path(model) if models.is_folder(model) else Path()) / f"{task}.jsonl"
    for path in (out, summary := out.with_suffix(".json")):
        check_writable(path)
    where = devices.choose_device(device)
    rows = question_files.read_rows(data)
    tokenizer = models.open_tokenizer(place)
    with quiet_transformers():
        network = models.open_model(place, adapter=True).to(where)
    scores = scoring.score_model(
        network, tokenizer, rows, template=chosen, columns=_names(columns), limit=limit, batch_size=batch_size,
        max_new_tokens=max_new_tokens, extraction=extraction,
    )  # fmt: skip
    scoring.write_answers(out, scores)
    origin = {"model": model, "task": task, "data": {"name": data, "sha256": rows.sha256}, "template": chosen,
           "max_new_tokens": max_new_tokens}  # fmt: skip
    write_json(summary, scores.to_dict() | origin | {"environment": devices.environment(where)})
    for name, value in scores.accuracies.items():
        low, high = scores.interval(name)
        mark = " *" if name == scores.extraction else ""
        interval = f"{100 * low:.1f}–{100 * high:.1f}"
        questions = f"{len(scores.answers)} questions"
        options.stdout.print(f"{name:16s} {100 * value:5.1f} %  ({interval}, {questions}){mark}", markup=False)
    options.show(answers=out, result=summary)


@llm.command()
@click.option("--model", required=True, metavar="FOLDER|NAME", help="A run of finetune, the folder of a model, or a "
              "name of the Hugging Face hub.")  # fmt: skip
@click.option("--reference", metavar="FOLDER|NAME|untrained", help="Model of the same depth and width to compare "
              "with; untrained: random weights.")  # fmt: skip
@click.option("--text", type=options.PATH, required=True, metavar="FILE", help="UTF-8 text file.")
@click.option("--layers", metavar="all|last|NUMBERS", help="Layers, with commas between; 0: the embeddings.  "
              "[default: all]")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(2), metavar="TOKENS", help="Stop after this many tokens.  "
              "[default: the whole text]")  # fmt: skip
@click.option("--window", type=click.IntRange(2), metavar="TOKENS", help="Context window.  [default: 512, "
              "or the model's limit below that]")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), metavar="WINDOWS", help="Windows per forward pass (does not "
              "affect results).  [default: 8]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Random seed of the untrained reference.  [default: 0]")
@options.out(None, what="Folder for diagnose.json and diagnose.html")
@options.device
def diagnose(
    model: str, reference: str | None, text: Path, layers: str | None, max_tokens: int | None, window: int | None,
    batch_size: int | None, seed: int | None, out: Path, device: str,
) -> None:  # fmt: skip
    """Measure the token representations of a language model, layer by layer: entropies and ranks.

    Matrix entropy, effective rank, eRank, Diff-eRank against a reference, and matrix nuclear norm, over a text of any
    length. Running the same command overwrites the results. Definitions: docs/llm-diagnose.md.
    """
    from matrix_ssl.llm.diagnose import run as diagnosis
    from matrix_ssl.report.diagnosis import PAGE, RESULT, terminal
    from matrix_ssl.runs import devices

    given = options.given(
        reference=reference, layers=layers, max_tokens=max_tokens, window=window, batch_size=batch_size, seed=seed
    )
    settings = diagnosis.DiagnoseSettings(model, text, **given)
    with options.stderr.status("opening") as status:
        result = diagnosis.diagnose(
            settings, out, device=devices.choose_device(device),
            on_progress=lambda name, windows: status.update(f"{name}: {windows} windows"),
        )  # fmt: skip
    options.stdout.print(terminal(result))
    options.show(results=out / RESULT, page=out / PAGE)
