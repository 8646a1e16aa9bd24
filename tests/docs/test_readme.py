"""The README and the pages of docs/ do what they say: their code runs, and what they name exists.

Lines of ``matrix-ssl`` are executed with the smallest settings on generated images, unless they need a network; then,
like those of ``torchrun``, they are only parsed, settings included.
"""

import functools
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import timm
import torchvision
from PIL import Image

import matrix_ssl
from matrix_ssl import config, methods
from matrix_ssl.cli import main
from matrix_ssl.config import recipes
from matrix_ssl.encoder import architectures
from matrix_ssl.evaluate.trained.protocols import EvaluationSettings
from matrix_ssl.llm.finetune.settings import FineTuneSettings, parse_assignments
from matrix_ssl.runs.folder import METHOD
from matrix_ssl.training import setup
from tests.support.comparisons import compare
from tests.support.quick import some

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SMALLEST = ["data.subset=16", "data.workers=0", "batch_size=8", "epochs=1", "network.width=8", "method.hidden_dim=16",
            "method.output_dim=16"]  # fmt: skip
NOT_RUN = {"--download", "DATA", "mae"}  # what needs a network, data of the reader, or a vision transformer
TINY_COLOUR = ["network.encoder=tiny_resnet", "data.image_size=32"]
SMALL_COLOUR = ["network.encoder=regnet_y_400mf", "data.image_size=32"]  # torchvision has it; 440 features
EXPORTED = ["pretrain", "--data", "photos"]  # begins the run ``runs/photos``, which pages export for torchvision
CONTINUED = ("maximum-entropy.md", "matrix-entropy.md", "python.md", "ranks.md")  # the blocks of each are one program
OTHER_TOOLS = {"--nproc-per-node", "--help", "--durations"}  # torchrun, every command, pytest
SLOW = (
    "compare.md",
    "find.md",
    "images.md",
    "measure.md",
    "settings.md",
    "your-stack.md",
)  # their commands are variants of those of other pages
GROUPS = ("data", "network", "method", "optimizer")

each_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and code of every fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def shell_lines(page: Path) -> list[list[str]]:
    return [shlex.split(line) for language, code in blocks(page) if language == "sh" for line in code.splitlines()]


def inline_code(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def check_settings(recipe: str, assignments: list[str], method: str | None = None) -> None:
    """Every key exists and every value is of its type; encoders have a name that is known."""
    base = recipes.find_recipe(recipe)
    result = config.override(setup.use_method(base, method) if method else base, assignments)
    if not result.method.name.endswith(".py"):
        methods.complete_options(methods.find_method(result.method.name), result.method.options)
    name = result.network.encoder
    known = [*torchvision.models.list_models(module=torchvision.models), "tiny_resnet", "timm/NAME"]
    assert name in known or name.removeprefix("timm/") in timm.list_models(), name


def check_command(words: list[str]) -> None:
    """The command, its options and its settings exist."""
    command = main.commands.commands[words[0]]
    context = command.make_context(words[0], list(words[1:]))
    if words[0] in ("pretrain", "compare"):
        recipe = context.params["recipe"] or "images_small"
        check_settings(recipe, list(context.params["assignments"]), context.params.get("method"))
    if context.params.get("method") is not None:
        methods.find_method(context.params["method"])


def is_exported(words: list[str]) -> bool:
    return words[:3] == EXPORTED and ("--out" not in words or "runs/photos" in words)


def run_command(words: list[str]) -> None:
    """Executes one line of matrix-ssl in the current folder, with the smallest settings and the quickest protocol."""
    if words[0] == "pretrain":
        colour = SMALL_COLOUR if is_exported(words) else TINY_COLOUR
        small = SMALLEST if "demo" in words else SMALLEST + colour
        words = [*words, *(part for setting in small for part in ("--set", setting))]
    if words[0] == "compare":
        colour = [] if "demo" in words else TINY_COLOUR
        few = "matrix_ssl,simsiam" if "--rivals-budget" in words else "simsiam"
        shorter = {"--methods": few, "--seeds": "1", "--budget": "1"}
        if "--trials-from" not in words:
            shorter["--trials"] = "2" if "runs/short" in words else "1"
        longer = ["--rivals-budget", "2"] * ("--rivals-budget" in words)
        whole = "data.subset=200"  # every class has images to hold out
        settings = [part for setting in (*SMALLEST, *colour, whole) for part in ("--set", setting)]
        words = [*words, *(part for pair in shorter.items() for part in pair), *longer, *settings]
    if words[:2] == ["llm", "finetune"]:
        words = [*words, "--set", "epochs=2"]
    if words[0] == "evaluate" and "--protocol" not in words:
        words = [*words, "--protocol", "knn"]
    if words[0] in ("pretrain", "evaluate") and Path("runs", "photos", "report.html").exists():
        words = [*words, "--no-report"]  # one page is enough, that of the first run
    if words[0] == "compare":  # its jobs are forked
        compare(Path.cwd(), [*words, "--device", "cpu"])
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["matrix-ssl", *words, *(["--device", "cpu"] if uses_device(words[0]) else [])])
        with pytest.raises(SystemExit) as end:
            main.main()
    assert end.value.code == 0, words


def with_small_network(pretrain: Any) -> Any:
    """``matrix_ssl.pretrain`` with the networks of the smallest settings, where a call names no others."""
    small = {"network.width": 8, "method.hidden_dim": 16, "method.output_dim": 16}

    @functools.wraps(pretrain)
    def call(*arguments: Any, settings: Any = (), **keywords: Any) -> Any:
        return pretrain(*arguments, settings=small | dict(settings), **keywords)

    return call


def uses_device(command: str) -> bool:
    return any("--device" in parameter.opts for parameter in main.commands.commands[command].params)


def run_line(words: list[str], done: list[list[str]]) -> None:
    """Executes or checks a line of a shell block, by its program; what is done already need not be done again."""
    if words in done:
        return
    done.append(words)
    program, *arguments = words
    if program == "matrix-ssl":
        check_command(arguments)
        if not NOT_RUN & set(arguments) and not any(word.startswith("hf:") for word in arguments):
            run_command(arguments)
    elif program == "torchrun":
        check_command(arguments[arguments.index("matrix_ssl") + 1 :])
    elif words[:2] == ["python", "-m"]:
        check_script(*arguments[1:])
    elif program == "make":
        check_target(arguments[0])
    elif program == "pip":
        check_pip(arguments)
    else:
        pytest.fail(f"no check for {words}")


def check_script(name: str, *words: str) -> None:
    """The module and its options exist."""
    specification = importlib.util.find_spec(name)
    assert specification is not None and specification.origin is not None, name
    text = Path(specification.origin).read_text("utf-8")
    assert all(f'"{word}"' in text for word in words if word.startswith("--")), words


@functools.cache  # many pages name the same
def check_target(target: str) -> None:
    result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def check_pip(arguments: list[str]) -> None:
    """``install -e .[extras] -c FILE``: the extras and the file exist."""
    assert arguments[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    wanted = re.fullmatch(r"\.(?:\[([\w,]+)\])?", arguments[arguments.index("-e") + 1])
    assert wanted is not None
    assert set((wanted[1] or "").split(",")) - {""} <= extras.keys()
    assert (ROOT / arguments[arguments.index("-c") + 1]).is_file()


@pytest.fixture(scope="module", autouse=True)
def small_images() -> Iterator[None]:
    """Encoders that take images of any size take small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "IMAGE_SIZE", 32)
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with ``photos`` in class folders, in which the pages are executed in turn."""
    folder = tmp_path_factory.mktemp("workspace")
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(14):
            pixels = (random.integers(0, 200, 3) + random.normal(0, 30, (24, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def done(workspace) -> list[list[str]]:
    """The lines that were executed in the workspace: at first the README's pre-training, which every page relies on."""
    lines: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        run_line(next(words for words in shell_lines(README) if words[:2] == ["matrix-ssl", "pretrain"]), lines)
    return lines


@each_page
def test_commands_parse(page):
    """For the pages whose commands run in ``make test-slow`` alone."""
    for words in shell_lines(page):
        if words[0] == "matrix-ssl":
            check_command(words[1:])


@pytest.mark.parametrize("page", some([page.name for page in PAGES], *(p.name for p in PAGES if p.name not in SLOW)))
# trl 1.16 uses a name that transformers 5.23 calls old
@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
def test_code_blocks_run(page, workspace, done, monkeypatch):
    """Each block by itself, but for the pages that are read from top to bottom.

    The blocks of the page of the architecture are changes of the source: ``test_architecture_page.py`` applies them.
    """
    page = next(path for path in PAGES if path.name == page)
    monkeypatch.chdir(workspace)
    for function in (matrix_ssl.pretrain, matrix_ssl.Run.evaluate):
        monkeypatch.setitem(function.__kwdefaults__, "report", False)
    monkeypatch.setattr(matrix_ssl, "pretrain", with_small_network(matrix_ssl.pretrain))
    names = {"__name__": "__main__"}
    for number, (language, code) in enumerate(blocks(page)):
        if language == "sh":
            for line in code.splitlines():
                run_line(shlex.split(line), done)
        elif language == "python" and page.name != "architecture.md":
            names = names if page.name in CONTINUED else {"__name__": "__main__"}
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)
        else:
            assert language in ("", "bibtex", "python")


@each_page
def test_options_settings_and_names_exist(page):
    commands = list(main.commands.commands.values())
    commands += [inner for group in commands for inner in getattr(group, "commands", {}).values()]
    options = {name for command in commands for p in command.params for name in p.opts}
    for text in inline_code(page):
        assert set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", text)) <= options | OTHER_TOOLS, text
        assignments = re.findall(r"--set \"?([a-z][\w.]*=[^\s\"]+)", text)
        check_mention(text)
        if not assignments:
            continue
        if page.name.startswith("llm"):  # settings of a fine-tuning
            settings = FineTuneSettings(model="tiny", data="sums.jsonl", template="plain").override(assignments)
            parse_assignments(settings.arguments)
            continue
        of_protocols = [a for a in assignments if a.partition(".")[0] in dir(EvaluationSettings())]
        config.override(EvaluationSettings(), of_protocols)
        check_settings("images", [a for a in assignments if a not in of_protocols], "matrix_ssl")


@functools.cache
def check_mention(text: str) -> None:
    """An inline setting, object, command or make target exists."""
    group, _, leaf = text.partition("=")[0].partition(".")
    if re.match(r"views\.\d+\.\w", text):
        assert hasattr(config.ViewConfig(), leaf.partition(".")[2]), text
    elif group in GROUPS and leaf.isidentifier() and text != METHOD:  # the file of a run
        check_setting_exists(group, leaf)
    elif match := re.fullmatch(r"(matrix_ssl(?:\.\w+)+)(?:\(.*\))?", text):
        check_object(match[1])
    elif match := re.match(r"matrix-ssl (\w+)", text):
        assert match[1] in main.commands.commands, text
    elif match := re.fullmatch(r"make ([\w-]+)", text):
        check_target(match[1])


def check_setting_exists(group: str, leaf: str) -> None:
    values = config.to_dict(recipes.find_recipe("images"))[group]
    if group == "method":
        known = (methods.complete_options(methods.find_method(name), {}) for name in ("matrix_ssl", "matrix_entropy"))
        values = {"name": None} | next(known) | next(known)
    assert leaf in values, f"{group}.{leaf}"


def check_object(name: str) -> None:
    """A module, or something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        assert hasattr(importlib.import_module(module), attribute), name


@each_page
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_every_setting_is_described():
    """Every setting of a run stands in a table of docs/settings.md; the second view is as the first."""
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    described = set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
    keys = {key for key, _ in config.flatten(config.to_dict(recipes.find_recipe("images")))}
    assert {key for key in keys if not key.startswith(("views.1.", "method.options"))} <= described


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_commands_in_recipes_parse(name):
    text = importlib.import_module(f"matrix_ssl.config.recipes.{name}").__doc__
    for line in re.findall(r"^    (matrix-ssl .*|torchrun .*)$", text, re.MULTILINE):
        words = shlex.split(line)
        check_command(words[words.index("matrix_ssl") + 1 :] if words[0] == "torchrun" else words[1:])
    for code in re.findall(r"``(--set .*?)``", text, re.DOTALL):
        check_settings(name, [word for word in code.split() if word != "--set"])


def test_run_folder_is_described(workspace, done):
    """Every file of a run and every key of its metrics stands in a table of docs/runs.md."""
    text = (ROOT / "docs" / "runs.md").read_text("utf-8")
    described = set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
    run = workspace / "runs" / "photos"
    assert {path.name + "/" * path.is_dir() for path in run.iterdir()} <= described
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert {key for line in lines for key in line} <= described


def test_table_of_the_series_is_right():
    """docs/taylor.md: the derivative of the logarithm and of four terms of its series about one."""
    text = (ROOT / "docs" / "taylor.md").read_text("utf-8")
    ridges = [float(value) for value in re.findall(r"μ = ([\d.]+): exact", text)]
    rows = [[float(cell) for cell in row.split("|")] for row in re.findall(r"^\| ([\d. |]+) \|$", text, re.MULTILINE)]
    assert (len(ridges), [row[0] for row in rows]) == (3, [0.0, 0.1, 0.5, 1.0])
    for eigenvalue, *cells in rows:
        x = np.array(ridges) + eigenvalue
        series = sum((1 - x) ** k for k in range(4))
        np.testing.assert_allclose(cells, np.stack([1 / x, series], 1).ravel(), atol=6e-4)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs (the extra docs) is not installed")
def test_site_builds_without_warnings(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pages = "".join(path.read_text("utf-8") for path in tmp_path.rglob("*.html"))
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?https?://[^">]+', pages) == []


def test_pages_name_only_known_commands():
    """A guard for the checks above: they saw the commands, so a changed layout of the pages cannot empty them."""
    seen = {words[1] for page in PAGES for words in shell_lines(page) if words[0] == "matrix-ssl"}
    assert seen == {
        "pretrain",
        "evaluate",
        "embed",
        "measure",
        "search",
        "duplicates",
        "outliers",
        "cluster",
        "mislabels",
        "select",
        "diagnose",
        "explore",
        "pack",
        "export",
        "serve",
        "recipes",
        "methods",
        "compare",
        "llm",
        "doctor",
    }
    with pytest.raises(click.NoSuchOption):
        check_command(["pretrain", "--no-such-option"])
