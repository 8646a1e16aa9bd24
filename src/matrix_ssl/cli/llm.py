"""The commands ``matrix-ssl llm finetune``, ``merge``, ``generate``, ``score`` and ``diagnose``."""

import json
import logging
import shlex
from pathlib import Path
from typing import Any, get_args

import click

from matrix_ssl.cli import options
from matrix_ssl.errors import ConfigError
from matrix_ssl.llm.data import templates
from matrix_ssl.llm.data.templates import Extraction, TemplateName
from matrix_ssl.llm.finetune.settings import MODEL, RESULT, FineTuneSettings
from matrix_ssl.runs.files import write_json, write_text
from matrix_ssl.runs.folder import check_output

_template = click.Choice(get_args(TemplateName))
_columns = click.option("--columns", metavar="NAMES", help="Columns with questions and answers, with a comma "
                        "between, or one with messages.  [default: question,answer or query,response or "
                        "messages]")  # fmt: skip


@click.group(invoke_without_command=True)
@click.pass_context
def llm(context: click.Context) -> None:
    """Language models: fine-tune with matrix cross-entropy, generate, score and diagnose."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    for library in ("bitsandbytes", "lm_eval"):  # they warn about kernels and about a model passed as an object
        logging.getLogger(library).setLevel(logging.ERROR)


def _names(columns: str | None) -> tuple[str, ...]:
    return tuple(columns.split(",")) if columns else ()


@llm.command()
@click.option("--model", type=options.PLACE, required=True, metavar="FOLDER|NAME|config:PATH", help="Model: a run of "
              "finetune, a folder in safetensors with its tokenizer, or that of an adapter to train further, a name of "
              "the Hugging Face hub, or a configuration for random weights.")  # fmt: skip
@click.option("--data", type=options.PLACE, required=True, metavar="FILE|hf:NAME", help="Questions and answers: "
              ".jsonl, .json, .csv or .parquet, or hf:NAME:CONFIGURATION:SPLIT of the hub.")  # fmt: skip
@click.option("--eval-data", type=options.PLACE, default="", metavar="FILE|hf:NAME", help="Questions and answers that "
              "are measured and not learned; the checkpoint with their lowest loss is kept.  [default: none; --set "
              "held_out=0.1 takes a tenth of --data]")  # fmt: skip
@click.option("--template", type=_template, required=True, help="Template that turns a question into a prompt.")
@_columns
@click.option("--load-in-4bit", is_flag=True, help="Hold the linear layers below the adapters in four bits (QLoRA); "
              "needs --set lora=RANK.")  # fmt: skip
@options.assignments("Change a setting, or an argument of transformers' TrainingArguments")
@options.out(None)
@options.fresh
@options.max_hours
@options.loggers
@options.device
def finetune(
    model: str, data: str, eval_data: str, template: TemplateName, columns: str | None, load_in_4bit: bool,
    assignments: tuple[str, ...], out: Path, fresh: bool, loggers: tuple[str, ...], device: str,
) -> None:  # fmt: skip
    """Fine-tune a language model on questions and answers. Run the same command to resume.

    Only answers are learned. docs/llm.md lists the settings: objective.weight, epochs, batch_size, learning_rate, lora
    and others. Their defaults are MetaMath's.
    """
    settings = FineTuneSettings(
        model=model, data=data, eval_data=eval_data, template=template, columns=_names(columns)
    )  # fmt: skip
    settings = settings.override([*(["load_in_4bit=true"] if load_in_4bit else []), *assignments])
    from matrix_ssl import distributed
    from matrix_ssl.data.hub import quiet_transformers
    from matrix_ssl.llm.finetune import run as runs
    from matrix_ssl.runs.loggers import check_loggers
    from matrix_ssl.runs.session import session

    check_loggers(loggers)
    with session(device) as s, quiet_transformers():
        with distributed.together():
            prepared = runs.prepare(settings, out, device=s.device)
        result = out / RESULT
        if not s.claim(out, prepared.description, is_complete=result.exists, fresh=fresh, packages=runs.PACKAGES):
            s.display.say(prepared.headline())
            for remark in prepared.remarks():
                s.display.say(remark)
            runs.run(prepared, out, display=s.display, loggers=loggers)
        elif s.main:
            runs.remove_checkpoints(out)
        if s.main:
            options.say(f"Ask it: matrix-ssl llm generate --model {shlex.quote(str(out))} --prompt TEXT")
            options.show(model=out / MODEL, result=result)


@llm.command()
@click.option("--model", type=options.PLACE, required=True, metavar="FOLDER", help="A run of finetune with adapters, "
              "or a folder that holds an adapter.")  # fmt: skip
@options.out(None, what="Folder for the model")
def merge(model: str, out: Path) -> None:
    """Merge an adapter into its model, to diagnose it or open it in other programs.

    The weights have the precision of the model that the adapter was trained on.
    """
    from matrix_ssl.llm.merging import merge as merge_adapter

    with options.stderr.status("merging"):
        precision = merge_adapter(model, out)
    options.say(f"Merged, in {str(precision).removeprefix('torch.')}.")
    options.show(model=out)


_model = click.option("--model", type=options.PLACE, required=True, metavar="FOLDER|NAME", help="Model: a run of "
                      "finetune, a folder, or a name of the Hugging Face hub.")  # fmt: skip
_template_of_run = click.option("--template", type=_template, help="Template that turns a question into a prompt.  "
                                "[default: that of the run]")  # fmt: skip
_batch_size = click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True,
                           help="Questions per batch.")  # fmt: skip


def _open(model: str, template: TemplateName | None, device: str) -> tuple[Any, Any, TemplateName]:
    """A model on its device, its tokenizer, and the template from the option or the run."""
    from matrix_ssl.data.hub import quiet_transformers
    from matrix_ssl.llm import models
    from matrix_ssl.runs import devices

    place, settings = models.find_model(model)
    chosen: TemplateName | None = template or settings.get("template")
    if chosen is None:
        names = ", ".join(get_args(TemplateName))
        raise ConfigError(f"{model} does not record the template it was trained with: give --template ({names}).")
    tokenizer = models.open_tokenizer(place)
    with quiet_transformers():
        network = models.open_model(place, adapter=True).to(devices.choose_device(device))
    return network, tokenizer, chosen


@llm.command()
@_model
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A question; may be repeated.")
@click.option("--data", type=options.PLACE, metavar="FILE|hf:NAME", help="A file of questions: .txt with one a line, "
              "or as for finetune.")  # fmt: skip
@_columns
@_template_of_run
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Answer only the first N questions.")
@_batch_size
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, help="Maximum tokens per answer."
)
@click.option("--out", type=options.PATH, metavar="FILE", help="File with a JSON line for each question.  [default: "
              "none, the answers are printed]")  # fmt: skip
@options.device
def generate(
    model: str, prompts: tuple[str, ...], data: str | None, columns: str | None, template: TemplateName | None,
    limit: int | None, batch_size: int, max_new_tokens: int, out: Path | None, device: str,
) -> None:  # fmt: skip
    """Answer questions with a language model, by greedy decoding."""
    if bool(prompts) == (data is not None):
        raise ConfigError("Name the questions by --prompt TEXT, or a file of them by --data FILE.")
    from matrix_ssl.llm import writing
    from matrix_ssl.llm.data import question_files

    if out is not None:
        check_output(out, data)
    read = question_files.read_questions
    questions = question_files.check_prompts(prompts) if data is None else read(data, _names(columns))
    network, tokenizer, chosen = _open(model, template, device)
    templates.check_template(chosen, tokenizer)
    questions = questions[:limit]
    texts = templates.each_text(templates.prompt, questions, chosen, tokenizer)
    with options.stderr.status("answering") as status:
        written = writing.write(
            network, tokenizer, texts, template=chosen, batch_size=batch_size, max_new_tokens=max_new_tokens,
            on_progress=lambda done, total, rate: status.update(f"{done}/{total} answers, {rate:.0f} tokens/s"),
        )  # fmt: skip
    options.say(f"{written.tokens} tokens in {written.seconds:.1f} s, {written.tokens / written.seconds:.0f} tokens/s.")
    if out is None:
        for question, answer in zip(questions, written.texts, strict=True):
            heading = f"> {question.asked}\n" if len(texts) > 1 else ""
            options.stdout.print(f"{heading}{answer}")
        return
    pairs = zip(questions, written.texts, strict=True)
    lines = (json.dumps({"question": one.asked, "answer": other}, ensure_ascii=False) for one, other in pairs)
    write_text(out, "".join(f"{line}\n" for line in lines))
    options.show(answers=out)


@llm.command()
@_model
@click.option("--task", type=click.Choice(["gsm8k", "math", "exact"]), default="gsm8k", show_default=True,
              help="Benchmark: numbers as in GSM8K, answers in \\boxed{} as in MATH, or whole answers that match "
              "exactly.")  # fmt: skip
@click.option("--data", type=options.PLACE, required=True, metavar="FILE|hf:NAME", help="Questions with answers, for "
              "gsm8k such that end in #### and a number.")  # fmt: skip
@_columns
@_template_of_run
@click.option("--extract", "extraction", type=click.Choice(get_args(Extraction)), help="Rule that extracts the number "
              "from an answer.  [default: answer-is with the template metamath, else strict-match]")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Score only the first N questions.")
@_batch_size
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
    """Score a language model: answer questions greedily and count the correct answers.

    GSM8K is scored by lm-evaluation-harness, MATH with its comparison of answers.
    """
    from matrix_ssl.llm import exact, mathematics, models, writing
    from matrix_ssl.llm import score as scoring
    from matrix_ssl.llm.data import question_files
    from matrix_ssl.runs import devices

    if extraction is not None and task != "gsm8k":
        raise ConfigError(f"--extract {extraction} finds numbers: remove it with --task {task}.")
    models.find_model(model)  # so that an incomplete run is an error before anything is opened
    out = out or (Path(model) if models.is_folder(model) else Path()) / f"{task}.jsonl"
    if out == (summary := out.with_suffix(".json")):
        raise ConfigError(f"--out {out}: the accuracies are written there; end the name in .jsonl.")
    for path in (out, summary):
        check_output(path, data)
    rows = question_files.read_rows(data)
    network, tokenizer, chosen = _open(model, template, device)
    common: dict[str, Any] = {"template": chosen, "columns": _names(columns), "limit": limit, "batch_size": batch_size,
                              "max_new_tokens": max_new_tokens}  # fmt: skip
    if task in (exact.EXACT, mathematics.MATH):
        count_right = exact.score_exact if task == exact.EXACT else mathematics.score_math
        with options.stderr.status("answering") as status:
            scores = count_right(
                network, tokenizer, rows, **common,
                on_progress=lambda done, total, rate: status.update(f"{done}/{total} answers, {rate:.0f} tokens/s"),
            )  # fmt: skip
    else:
        scores = scoring.score_model(network, tokenizer, rows, **common, extraction=extraction)
    scoring.write_answers(out, scores)
    origin = {"model": model, "task": task, "data": {"name": data, "sha256": rows.sha256}, "template": chosen,
              "max_new_tokens": max_new_tokens, "ignored_generation_settings": writing.ignored_settings(network),
              "cache": "static" if writing.has_static_cache(network) else "dynamic",
              "environment": devices.environment(network.device)}  # fmt: skip
    write_json(summary, scores.to_dict() | origin)
    for name, value in scores.accuracies.items():
        low, high = scores.interval(name)
        mark = " *" if name == scores.extraction and len(scores.accuracies) > 1 else ""
        interval = f"{100 * low:.1f}–{100 * high:.1f}"
        questions = f"{len(scores.answers)} questions"
        options.stdout.print(f"{name:16s} {100 * value:5.1f} %  ({interval}, {questions}){mark}")
    if scores.tokens_per_second is not None:
        options.say(f"{scores.tokens_per_second:.0f} tokens/s.")
    options.show(answers=out, result=summary)


@llm.command()
@_model
@click.option("--reference", type=options.PLACE, metavar="FOLDER|NAME|config:PATH|untrained", help="Model of the same "
              "depth and width to compare with; config: and untrained are random weights.")  # fmt: skip
@click.option("--text", type=options.PATH, required=True, metavar="FILE", help="UTF-8 text file.")
@click.option("--layers", metavar="all|last|NUMBERS", help="Layers, separated by commas; 0: the embeddings.  "
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

    Matrix entropy, effective rank, eRank, Diff-eRank against a reference, matrix nuclear norm, curvature, DiME and
    LiDAR, over a text of any length. Running the same command overwrites the results. Definitions:
    docs/llm-diagnose.md.
    """
    from matrix_ssl.llm.diagnose import run as diagnosis
    from matrix_ssl.report.diagnosis import PAGE, RESULT, terminal
    from matrix_ssl.runs import devices

    given = options.given(
        reference=reference, layers=layers, max_tokens=max_tokens, window=window, batch_size=batch_size, seed=seed
    )
    settings = diagnosis.DiagnoseSettings(model, text, **given)
    with options.progress("opening") as update:
        result = diagnosis.diagnose(
            settings, out, device=devices.choose_device(device),
            on_progress=lambda name, windows, share: update(f"{name}: {windows} windows", share),
        )  # fmt: skip
    options.stdout.print(terminal(result))
    options.show(results=out / RESULT, page=out / PAGE)
