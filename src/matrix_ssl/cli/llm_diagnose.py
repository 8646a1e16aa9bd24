"""The command ``matrix-ssl llm diagnose``."""

from pathlib import Path

import click

from matrix_ssl.cli import options


@click.command()
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
    length. Running the same command overwrites the results. Definitions: docs/llm-diagnose.md.
    """
    from matrix_ssl.llm.diagnose import run as diagnosis
    from matrix_ssl.report.diagnosis import PAGE, RESULT, terminal
    from matrix_ssl.runs import devices

    given = options.given(
        reference=reference, layers=layers, max_tokens=max_tokens, window=window, batch_size=batch_size, seed=seed
    )  # fmt: skip
    settings = diagnosis.DiagnoseSettings(model, text, **given)
    with options.stderr.status("opening") as status:
        result = diagnosis.diagnose(
            settings,
            out,
            device=devices.choose_device(device),
            on_progress=lambda name, windows: status.update(f"{name}: {windows} windows"),
        )
    options.stdout.print(terminal(result))
    options.show(results=out / RESULT, page=out / PAGE)
