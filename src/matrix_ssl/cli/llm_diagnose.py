"""``matrix-ssl llm diagnose``: parse, call, print."""

from pathlib import Path
from typing import Any

import click

from matrix_ssl.cli import options

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--model", required=True, metavar="FOLDER|NAME", help="A run of finetune, the folder of a model, or a "
              "name of the Hugging Face hub.")  # fmt: skip
@click.option("--reference", metavar="FOLDER|NAME|untrained", help="Compare with another model of the same depth and "
              "width, or with random weights.")  # fmt: skip
@click.option("--text", type=_PATH, required=True, metavar="FILE", help="Text in UTF-8.")
@click.option("--layers", metavar="all|last|NUMBERS", help="Numbers with commas between; 0: the embeddings.  "
              "[default: all]")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(2), help="Read no more of the text.  [default: all of it]")
@click.option("--window", type=click.IntRange(2), metavar="TOKENS", help="What the model sees at once.  [default: 512, "
              "or the model's limit below that]")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), metavar="WINDOWS", help="Read at a time; changes no measure.  "
              "[default: 8]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Of the random weights.  [default: 0]")
@click.option("--out", type=_PATH, required=True, metavar="FOLDER", help="Where diagnose.json and diagnose.html go.")
@options.device
def diagnose(
    model: str,
    reference: str | None,
    text: Path,
    layers: str | None,
    max_tokens: int | None,
    window: int | None,
    batch_size: int | None,
    seed: int | None,
    out: Path,
    device: str,
) -> None:
    """Measure the token representations of a language model, layer by layer: entropies and ranks.

    Matrix entropy, effective rank, eRank, Diff-eRank against a reference, and matrix nuclear norm, over a text of any
    length. The same command again writes the results again. Definitions: docs/llm-diagnose.md.
    """
    from matrix_ssl.llm.diagnose import run as diagnosis
    from matrix_ssl.report.diagnosis import PAGE, RESULT, terminal
    from matrix_ssl.runs import devices

    named: dict[str, Any] = {
        "reference": reference, "layers": layers, "max_tokens": max_tokens, "window": window,
        "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    given = {key: value for key, value in named.items() if value is not None}
    settings = diagnosis.DiagnoseSettings(model, text, **given)
    with options.err.status("opening") as status:
        result = diagnosis.diagnose(
            settings,
            out,
            device=devices.choose_device(device),
            on_progress=lambda name, windows: status.update(f"{name}: {windows} windows"),
        )
    options.out.print(terminal(result))
    options.out.print(f"results {out / RESULT}\npage    {out / PAGE}", markup=False)
