"""``matrix-ssl doctor``: what it says about a whole and a broken environment, and that its table of needs is true."""

import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from email.message import Message
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import matrix_ssl
from matrix_ssl.cli import options
from matrix_ssl.cli.doctor import EVERY, NEEDS
from matrix_ssl.cli.main import commands
from matrix_ssl.config import system
from matrix_ssl.runs import caches, machine
from matrix_ssl.runs.loggers import LOGGERS
from matrix_ssl.runs.packages import DEVELOPMENT

ROOT = Path(matrix_ssl.__file__).parent
PROJECT = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"].keys() - set(DEVELOPMENT)


@pytest.fixture(autouse=True)
def as_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The metadata of the source, empty caches, and no network."""
    requirements = list(PROJECT["dependencies"]) + [
        f"{line} ; extra == '{extra}'" for extra, lines in PROJECT["optional-dependencies"].items() for line in lines
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    message = Message()
    for extra in PROJECT["optional-dependencies"]:
        message["Provides-Extra"] = extra
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: message)
    for variable in ("HF_HOME", "TORCH_HOME", "MATRIX_SSL_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    for variable in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "MATRIX_SSL_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "socket", None)


def examine(code: int = 0) -> dict:
    result = CliRunner().invoke(commands, ["doctor", "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def show(code: int = 0) -> str:
    """The tables, each run of blanks as one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "stdout", Console(highlight=False, soft_wrap=True, width=200))
        result = CliRunner().invoke(commands, ["doctor"])
    assert result.exit_code == code, result.output
    return "\n".join(" ".join(line.split()) for line in result.stdout.splitlines())


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions of packages that differ from the installed ones; None: not installed."""
    changed: dict[str, str | None] = {}
    real = importlib.metadata.version

    def version(name: str) -> str:
        number = changed[name] if name in changed else real(name)
        if number is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return number

    monkeypatch.setattr(importlib.metadata, "version", version)
    return changed


def test_a_missing_extra_is_named_with_its_command_and_its_remedy(versions: dict[str, str | None]) -> None:
    versions |= {"timm": None, "peft": "0.1.0"}
    report = examine()
    assert report["lacks"]["export"]["--format timm"] == report["lacks"][EVERY]["encoders timm/NAME"] == "timm"
    assert report["lacks"]["llm"] == {"": "llm", "finetune --load-in-4bit": "qlora"}  # which has llm inside
    assert report["lacks"]["detect"] == {}
    (timm,) = report["extras"]["timm"]
    assert (timm["version"], timm["fits"]) == (None, False)
    text = show()
    assert "timm timm is missing pip install -e '.[timm]' -c constraints.txt" in text
    assert "llm peft is 0.1.0, needed is >=0.21 pip install -e '.[llm]' -c constraints.txt" in text
    assert "export --format timm timm" in text
    assert "llm all llm" in text


def test_a_missing_or_old_package_that_everything_needs_is_an_error(versions: dict[str, str | None]) -> None:
    versions |= {"scipy": None, "torchvision": "0.2"}
    bad = [package["name"] for package in examine(code=1)["packages"] if not package["fits"]]
    assert bad == ["torchvision", "scipy"]
    assert (
        "packages torchvision is 0.2, needed is >=0.26; scipy is missing: run pip install -e . -c constraints.txt"
    ) in show(code=1)


@pytest.mark.parametrize("instructions", ["AMX", ""])
def test_it_says_what_precision_auto_is(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "bfloat16_instructions", lambda device: instructions)
    (cpu,) = (device for device in examine()["devices"] if device["device"] == "cpu")
    assert (cpu["bfloat16"], cpu["bfloat16_instructions"]) == (bool(instructions), instructions)
    assert f"precision=auto is {'bfloat16 (AMX)' if instructions else 'float32'}" in show()


def test_a_whole_environment_lacks_nothing(versions: dict[str, str | None]) -> None:
    names = {package["name"] for members in examine()["extras"].values() for package in members}
    versions |= dict.fromkeys(names, "9999.0")
    assert not any(examine()["lacks"].values())
    assert "every command all nothing" in show()


def test_the_machine_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    report = examine()
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["open_files"] == system.open_file_limit()
    (cpu,) = (device for device in report["devices"] if device["device"] == "cpu")
    assert cpu["cores"] == system.cores() >= 1
    assert 0 < report["machine"]["memory"]["free"] <= report["machine"]["memory"]["total"]
    monkeypatch.setattr(system, "open_file_limit", lambda: 256)
    assert "open files 256 at most (low: raise it with ulimit -n 1024)" in show()


def test_the_memory_of_a_container_is_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits = ((tmp_path, ("memory.max", "memory.current")),)
    monkeypatch.setattr(system, "_CONTAINER_LIMITS", limits)
    whole = system.memory()[0]
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert system.memory()[0] == whole
    (tmp_path / "memory.max").write_text("10000\n")
    assert system.memory() == (10000, 7000)


def test_caches_have_their_size_and_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(not cache["exists"] and cache["weights"] == [] for cache in examine()["caches"].values())
    files = {
        "TORCH_HOME/hub/checkpoints/resnet50-0676ba61.pth": 100,
        "TORCH_HOME/hub/checkpoints/notes.txt": 10,
        "HF_HOME/hub/models--timm--resnet18.a1_in1k/blobs/abc": 1000,
        "HF_HOME/hub/models--openai-community--gpt2/snapshots/1/config.json": 20,  # its weights are not there
        "HF_HOME/datasets/x/train.arrow": 5000,
        "MATRIX_SSL_CACHE/features/0123/rows/indices.i64": 300,
    }
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    model = tmp_path / "HF_HOME/hub/models--timm--resnet18.a1_in1k"
    (model / "snapshots/2").mkdir(parents=True)
    (model / "snapshots/2/model.safetensors").symlink_to("../../blobs/abc")
    monkeypatch.setenv("MATRIX_SSL_DATA", str(tmp_path / "absent"))
    found = examine()["caches"]
    assert {name: cache["weights"] for name, cache in found.items()} == {
        "torch hub": ["resnet50-0676ba61.pth"],
        "Hugging Face hub": ["timm/resnet18.a1_in1k"],
        "Hugging Face datasets": [],
        "features of images": [],
        "named datasets": [],
    }
    link = len("../../blobs/abc")
    assert [cache["size"] for cache in found.values()] == [110, 1020 + link, 5000, 300, 0]
    monkeypatch.setattr(caches, "_SECONDS", -1.0)  # no time to look at all files
    assert not examine()["caches"]["torch hub"]["complete"]
    assert "torch hub over " in show()


def test_every_part_that_needs_an_extra_is_in_the_table() -> None:
    needed = {extra for parts in NEEDS.values() for extra in parts.values()}
    assert needed == EXTRAS
    text = "".join(path.read_text() for path in ROOT.rglob("*.py"))
    imported = set(re.findall(r'import_extra\("\w+", extra="(\w+)"\)', text)) | set(
        re.findall(r'MissingExtra\("\w+", "(\w+)"\)', text)
    )
    assert {"timm", "llm", "datasets"} <= imported
    assert imported | {name for name, logger in LOGGERS.items() if logger.packages} <= EXTRAS


def test_commands_and_options_of_the_table_exist() -> None:
    for name, parts in NEEDS.items():
        for part in parts:
            command, words = commands.commands["pretrain" if name == EVERY else name], part.split()
            if words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words[0]]
            options = {word for word in words if word.startswith("--")}
            assert options <= {each for parameter in command.params for each in parameter.opts}, part


def test_it_loads_none_of_the_packages_that_it_looks_for() -> None:
    """So it takes the two seconds of PyTorch alone, and a broken package does not break it."""
    code = (
        "import sys; from matrix_ssl.cli.main import commands\n"
        "commands.main(['doctor', '--json'], standalone_mode=False)\n"
        "print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "torch" in loaded
    assert (
        loaded & {"torchvision", "sklearn", "scipy", "matplotlib", "timm", "transformers", "datasets", "onnx"} == set()
    )
