"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from matrix_ssl.errors import RunFolderError

if TYPE_CHECKING:
    pass

out = Console(highlight=False, soft_wrap=True)


err = Console(stderr=True, highlight=False, soft_wrap=True)


data = click.option("--data", metavar="PATH_OR_NAME", help="A folder of images, a packed .npz file, hf:NAME, or a "
                    "set: digits, cifar10, cifar100, stl10.")  # fmt: skip


data_root = click.option("--data-root", type=click.Path(path_type=Path), envvar="MATRIX_SSL_DATA", show_envvar=True,
                         help="Where named sets lie.")  # fmt: skip


download = click.option("--download", is_flag=True, help="Let torchvision download a named set into --data-root.")


device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                      help="auto: CUDA, then MPS, then the CPU.")  # fmt: skip


assignments = click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True,
                           help="Change a setting; may be repeated.")  # fmt: skip


method = click.option("--method", metavar="NAME_OR_FILE", help="Another method than the recipe's: a name that "
                      "`matrix-ssl methods` lists, or a Python file.")  # fmt: skip


run = click.argument("run", type=click.Path(path_type=Path))


weights = click.option("--weights", type=click.Choice(["student", "teacher"]), default="student", show_default=True,
                       help="Which network of the run.")  # fmt: skip


def say(text: str) -> None:
    """Tells the person something, on standard error."""
    err.print(text, markup=False)


def existing_run(run: Path) -> Path:
    """The folder itself; raises RunFolderError where it is not a run folder."""
    if not (run / "config.json").exists():
        raise RunFolderError(f"{run} is not a run folder: it has no config.json.")
    return run
