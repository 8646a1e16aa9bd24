"""What needs PyTorch and NumPy alone: matrix functions, losses, those of methods and of language models.

``make test-floor`` runs this and the tests of the losses where nothing else is installed, with the oldest PyTorch.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import matrix_ssl

METHODS = sorted(
    path.stem for path in (Path(matrix_ssl.__file__).parent / "methods").glob("*.py") if not path.stem.startswith("_")
)
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "annotated-types": "annotated_types"}  # others: as the package
LIGHT = ["matrix_ssl.matrix", "matrix_ssl.losses", "matrix_ssl.distributed.losses", "matrix_ssl.networks",
         "matrix_ssl.methods", *(f"matrix_ssl.methods.{name}" for name in METHODS), "matrix_ssl.llm"]  # fmt: skip


def python(code: str) -> "subprocess.CompletedProcess[str]":
    """Runs code where every dependency but PyTorch and NumPy is missing."""
    lines = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["dependencies"]
    packages = {line.partition(">")[0] for line in lines} - {"torch", "numpy"}
    assert {"pydantic", "torchvision", "scipy"} <= packages
    missing = sorted(MODULES.get(package, package) for package in packages)
    before = f"import sys, torch; sys.modules |= dict.fromkeys({missing})\n"  # which may import some itself
    return subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True)


def test_losses_need_pytorch_and_numpy_alone() -> None:
    result = python(
        f"import {', '.join(LIGHT)}\n"
        "from matrix_ssl.llm import matrix_cross_entropy_loss\n"
        "from matrix_ssl.losses import matrix_ssl_loss\n"
        "from matrix_ssl.methods.simclr import simclr_loss\n"
        "from matrix_ssl.networks import make_teacher, mlp\n"
        "x = torch.randn(4, 8, 5, requires_grad=True)\n"
        "make_teacher(mlp(5, 5, 5))\n"
        "loss = matrix_ssl_loss(*x) + simclr_loss(x[0], x[1])\n"
        "loss += matrix_cross_entropy_loss(x, torch.randn(9, 5), torch.randint(9, (4, 8)))\n"
        "loss.backward(); print(x.grad.isfinite().all().item())"
    )
    assert (result.stdout, result.returncode) == ("True\n", 0), result.stderr


def test_the_rest_says_in_one_sentence_what_is_missing() -> None:
    """A setting, a dataset, a method and an encoder of torchvision, and the command line."""
    sentence = (
        "The package {!r} is not installed: matrix functions and losses need PyTorch and NumPy alone, everything else "
        "needs the rest: in the clone of matrix-ssl, run pip install -e . -c constraints.txt"
    )
    uses = [
        "from matrix_ssl.config import RunConfig",
        "from matrix_ssl.data import open_source",
        "from matrix_ssl.methods.simclr import SimCLR; SimCLR(torch.nn.Identity(), 5, hidden_dim=4)",
        "from matrix_ssl.networks import build_encoder\n    build_encoder('resnet18', channels=3, image_size=32)",
    ]
    blocks = "".join(f"try:\n    {use}\nexcept MissingPackage as error: print(error)\n" for use in uses)
    command = "sys.argv = ['matrix-ssl', 'recipes']; from matrix_ssl.__main__ import main; main()"
    result = python(f"from matrix_ssl.errors import MissingPackage\n{blocks}{command}")
    assert (result.stderr, result.returncode) == (f"error: {sentence.format('click')}\n", 1)
    lines = result.stdout.splitlines()
    packages = [line.split("'")[1] for line in lines]
    assert lines == [sentence.format(package) for package in packages]
    assert packages[0] in ("pydantic", "annotated_types") and packages[3] == "torchvision"
