"""``matrix-ssl llm``: parse, call, print."""

import contextlib
import logging
from pathlib import Path
from typing import Any, get_args

import click

from matrix_ssl.cli import options
from matrix_ssl.cli.llm_diagnose import diagnose
from matrix_ssl.errors import ConfigError
from matrix_ssl.llm.data.templates import Extraction, TemplateName
from matrix_ssl.llm.objective import DEFAULTS, Form, Objective
from matrix_ssl.llm.settings import MODEL, RESULT, FineTuneSettings

_DEFAULTS = FineTuneSettings(model="", data="", template="plain")
_template = click.Choice(get_args(TemplateName))
_columns = click.option("--columns", metavar="NAMES", help="Columns with questions and answers, a comma between, or "
                        "one with messages.  [default: question,answer or query,response or messages]")  # fmt: skip


@click.group()
def llm() -> None:
    """Language models: fine-tune with matrix cross-entropy, score, diagnose."""
    for library in ("bitsandbytes", "lm_eval"):  # they warn of kernels and of a model that is passed whole
        logging.getLogger(library).setLevel(logging.ERROR)


llm.add_command(diagnose)


def _names(columns: str | None) -> tuple[str, ...]:
    return tuple(columns.split(",")) if columns else ()


def _given(**values: Any) -> dict[str, Any]:
    """Those that are not None: the others have their defaults elsewhere."""
    return {key: value for key, value in values.items() if value is not None}


def _default(value: Any) -> str:
    return f"  [default: {value:g}]" if isinstance(value, (int, float)) else f"  [default: {value}]"


@llm.command()
@click.option("--model", required=True, metavar="FOLDER|NAME|config:PATH", help="A model in safetensors with its "
              "tokenizer, a name of the Hugging Face hub, or a configuration, for random weights.")  # fmt: skip
@click.option("--data", required=True, metavar="FILE|hf:NAME", help="Questions and answers: .jsonl, .jsonl.gz, a list "
              "in .json, or a set of the hub.")  # fmt: skip
@click.option("--template", type=_template, required=True, help="How a question becomes a prompt.")
@_columns
@click.option("--loss", type=click.Choice(["ce", "ce+mce"]), default="ce+mce", show_default=True,
              help="Cross-entropy alone, or with matrix cross-entropy.")  # fmt: skip
@click.option("--form", type=click.Choice(get_args(Form)), help="Of the matrix term." + _default(DEFAULTS.form))
@click.option("--weight", type=float, help="Of the matrix term." + _default(DEFAULTS.weight))
@click.option("--ridge", type=float, help="Of the matrix term." + _default(DEFAULTS.ridge))
@click.option("--steps", type=int, help="Of the form lanczos." + _default(DEFAULTS.steps))
@click.option("--top", type=int, help="Tokens of the form top." + _default(DEFAULTS.top))
@click.option("--lora", type=int, metavar="RANK", help="Train adapters of this rank; 0: all weights."
              + _default(_DEFAULTS.lora))  # fmt: skip
@click.option("--load-in-4bit", is_flag=True, help="Hold the linear layers below the adapters in four bits (QLoRA).")
@click.option("--epochs", type=float, help="Passes over the data." + _default(_DEFAULTS.epochs))
@click.option("--batch-size", type=int, help="Sequences of a step, of all processes together."
              + _default(_DEFAULTS.batch_size))  # fmt: skip
@click.option("--gradient-accumulation", type=int, help="Parts of a batch that are computed one after the other."
              + _default(_DEFAULTS.gradient_accumulation))  # fmt: skip
@click.option("--learning-rate", type=float, help="At its peak." + _default(_DEFAULTS.learning_rate))
@click.option("--max-length", type=int, help="Tokens; longer sequences are cut." + _default(_DEFAULTS.max_length))
@click.option("--seed", type=int, help="Of order, adapters and random weights." + _default(_DEFAULTS.seed))
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Another one of transformers' "
              "TrainingArguments; may be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--fresh", is_flag=True, help="Start over; an existing run folder is kept under another name.")
@options.device
def finetune(
    model: str,
    data: str,
    template: TemplateName,
    columns: str | None,
    loss: str,
    form: Form | None,
    weight: float | None,
    ridge: float | None,
    steps: int | None,
    top: int | None,
    lora: int | None,
    load_in_4bit: bool,
    epochs: float | None,
    batch_size: int | None,
    gradient_accumulation: int | None,
    learning_rate: float | None,
    max_length: int | None,
    seed: int | None,
    assignments: tuple[str, ...],
    out: Path,
    fresh: bool,
    device: str,
) -> None:
    """Fine-tune a language model on questions and answers. The same command again resumes.

    Only answers are learned. The defaults are MetaMath's; see docs/llm.md.
    """
    term = _given(form=form, weight=weight, ridge=ridge, steps=steps, top=top)
    if loss == "ce" and term:
        raise ConfigError(f"--loss ce has no matrix term: leave out {', '.join(f'--{key}' for key in term)}.")
    numbers = _given(
        lora=lora,
        epochs=epochs,
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        learning_rate=learning_rate,
        max_length=max_length,
        seed=seed,
    )
    settings = FineTuneSettings(
        model=model,
        data=data,
        template=template,
        columns=_names(columns),
        objective=Objective(weight=0.0) if loss == "ce" else Objective(**term),
        load_in_4bit=load_in_4bit,
        arguments=assignments,
        **numbers,
    )
    from matrix_ssl import distributed
    from matrix_ssl.data.hub import quiet_transformers
    from matrix_ssl.llm.finetune import run as runs
    from matrix_ssl.runs import devices
    from matrix_ssl.runs.display import Display
    from matrix_ssl.runs.folder import take_folder

    distributed.start(devices.choose_device(device).type)
    chosen = devices.choose_device(device)  # now that the number of this process is known
    display = Display(quiet=not distributed.is_main())
    with contextlib.ExitStack() as stack:
        stack.callback(distributed.stop)
        stack.enter_context(distributed.connected())
        stack.enter_context(quiet_transformers())
        with distributed.together():
            prepared = runs.prepare(settings, out, device=chosen)
        complete = False
        with distributed.together():
            if distributed.is_main():
                take_folder(out, stack, fresh=fresh, say=display.say)
                complete = runs.claim(prepared, out)
        if distributed.broadcast_object(complete):
            display.say(f"{out} is complete; --fresh starts over.")
        else:
            display.say(prepared.headline())
            if prepared.examples.cut or prepared.examples.dropped:
                display.say(
                    f"max_length={settings.max_length} cuts the end of {prepared.examples.cut} sequences and leaves "
                    f"nothing to learn of {prepared.examples.dropped} rows, which are left out"
                )
            runs.run(prepared, out, display=display)
        if distributed.is_main():
            options.out.print(f"model  {out / MODEL}\nresult {out / RESULT}", markup=False)


@llm.command()
@click.option("--model", required=True, metavar="FOLDER|NAME", help="A run of finetune, the folder of a model, or a "
              "name of the Hugging Face hub.")  # fmt: skip
@click.option("--task", type=click.Choice(["gsm8k"]), default="gsm8k", show_default=True, help="What is asked.")
@click.option("--data", required=True, metavar="FILE|hf:NAME", help="Questions, and answers with a number after ####.")
@_columns
@click.option("--template", type=_template, help="How a question becomes a prompt.  [default: that of the run]")
@click.option("--extract", "extraction", type=click.Choice(get_args(Extraction)), help="Where the number of an answer "
              "stands.  [default: answer-is with the template metamath, else strict-match]")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N questions.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Questions at a time.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=512, show_default=True, help="Of an answer.")
@click.option("--out", type=click.Path(path_type=Path), help="File with a line for each question; the accuracies come "
              "beside it, as .json.  [default: TASK.jsonl in the folder of the model]")  # fmt: skip
@options.device
def score(
    model: str,
    task: str,
    data: str,
    columns: str | None,
    template: TemplateName | None,
    extraction: Extraction | None,
    limit: int | None,
    batch_size: int,
    max_new_tokens: int,
    out: Path | None,
    device: str,
) -> None:
    """Let a language model answer questions and count the right answers, by lm-evaluation-harness."""
    from matrix_ssl.data.hub import quiet_transformers
    from matrix_ssl.llm import models
    from matrix_ssl.llm import score as scoring
    from matrix_ssl.llm.data import question_files
    from matrix_ssl.runs import devices
    from matrix_ssl.runs.files import check_writable, write_json

    folder, settings = scoring.find_model(Path(model)) if models.is_folder(model) else (Path(), {})
    chosen: TemplateName | None = template or settings.get("template")
    if chosen is None:
        raise ConfigError(f"{model} does not say which prompts it was trained with: give --template.")
    place = str(folder) if models.is_folder(model) else model
    out = out or (Path(model) if models.is_folder(model) else Path()) / f"{task}.jsonl"
    for path in (out, summary := out.with_suffix(".json")):
        check_writable(path)
    where = devices.choose_device(device)
    rows = question_files.read_rows(data)
    tokenizer = models.open_tokenizer(place)
    with quiet_transformers():
        network = models.open_model(place, adapter=True).to(where)
    found = scoring.score_model(
        network,
        tokenizer,
        rows,
        template=chosen,
        columns=_names(columns),
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        extraction=extraction,
    )
    scoring.write_answers(out, found)
    how = {"model": model, "task": task, "data": {"name": data, "sha256": rows.sha256}, "template": chosen,
           "max_new_tokens": max_new_tokens}  # fmt: skip
    write_json(summary, found.to_dict() | how | {"environment": devices.environment(where)})
    for name, value in found.accuracies.items():
        low, high = found.interval(name)
        mark = " *" if name == found.extraction else ""
        interval = f"{100 * low:.1f}–{100 * high:.1f}"
        questions = f"{len(found.answers)} questions"
        options.out.print(f"{name:16s} {100 * value:5.1f} %  ({interval}, {questions}){mark}", markup=False)
    options.out.print(f"answers {out}\nresult  {summary}", markup=False)
