"""The source distribution and the wheel: what is in them, and that the wheel works where nothing of the source is."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import matrix_ssl

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
PACKED = ("src", "tests", "docs", "docker", "examples", "benchmarks", "tools")  # a clone has others beside them


def build(what: str, source: Path, target: Path) -> Path:
    """Builds with the setuptools of this environment: no network and no environment of its own."""
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", BUILD, what, str(target)],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return target / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    (folder / "source").mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, folder / "source")
        elif path.name in PACKED:
            shutil.copytree(path, folder / "source" / path.name, ignore=shutil.ignore_patterns("*.egg-info"))
    return build("build_sdist", folder / "source", folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the unpacked source distribution, as an index would."""
    with tarfile.open(sdist) as file:
        file.extractall(sdist.parent, filter="data")
    return build("build_wheel", sdist.parent / sdist.name.removesuffix(".tar.gz"), sdist.parent)


def files_of_the_package() -> set[str]:
    """Everything below the package, with or without a rule that packs it."""
    folder = ROOT / "src"
    paths = (path for path in (folder / "matrix_ssl").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(folder).as_posix() for path in paths}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    info = f"matrix_ssl-{matrix_ssl.__version__}.dist-info/"
    package = {name for name in names if not name.startswith(info)}
    assert package == files_of_the_package()
    assert {"matrix_ssl/py.typed", "matrix_ssl/report/run.html", "matrix_ssl/llm/tasks/gsm8k.yaml"} <= package
    explore = {"page.css", "page.js", "vendor/regl-scatterplot.js", "vendor/LICENSES.txt"}
    assert {f"matrix_ssl/report/explore/{name}" for name in explore} <= package
    assert {name.removeprefix(info) for name in names - package} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE", "licenses/NOTICE",
        "licenses/src/matrix_ssl/report/explore/vendor/LICENSES.txt",
    }  # fmt: skip
    assert wheel.name == f"matrix_ssl-{matrix_ssl.__version__}-py3-none-any.whl"


def test_the_source_distribution_holds_what_tests_and_documentation_need(sdist: Path) -> None:
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("the source is not a git repository")
    assert set(tracked.stdout.split()) - names <= {".gitignore", ".ci/run"}


def test_the_metadata_are_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(file.read(name))
    for key in ("Summary", "Author", "Keywords", "Classifier", "Project-URL", "Requires-Dist", "License-File"):
        assert metadata[key], key
    assert (metadata["Name"], metadata["Version"]) == ("matrix-ssl", matrix_ssl.__version__)
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", PROJECT["requires-python"])
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert set(metadata.get_all("Provides-Extra")) == PROJECT["optional-dependencies"].keys()


def test_citation_and_changelog_name_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= citation.keys()  # what the format demands, and the licence
    assert (citation["version"], citation["license"]) == (matrix_ssl.__version__, PROJECT["license"])
    paper = citation["preferred-citation"]
    bibtex = (ROOT / "README.md").read_text("utf-8")
    assert f"title     = {{{paper['title']}}}" in bibtex
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author    = {{{names}}}" in bibtex
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None and newest[1] == matrix_ssl.__version__


def test_a_container_is_built_from_files_that_exist() -> None:
    """Each line is read here; building needs a container engine and a network."""
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    instructions = [line.split() for line in lines if line and not line.startswith(("#", " "))]
    assert {words[0] for words in instructions} <= {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT", "CMD"}
    (base,) = (words[1] for words in instructions if words[0] == "FROM")
    version = base.partition("python:")[2].partition("-")[0]
    assert PROJECT["requires-python"] == f">={version}"
    copied = {name.removeprefix("./") for words in instructions if words[0] == "COPY" for name in words[1:-1]}
    packed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert copied == packed
    assert all((ROOT / name).exists() for name in copied)
    needed = {"pyproject.toml", "src", PROJECT["readme"], *PROJECT["license-files"]}
    assert {name for name in needed if not name.startswith("src/")} <= copied  # what the build of the package reads
    assert any(words[:2] == ["ENTRYPOINT", '["matrix-ssl"]'] for words in instructions)
    assert "matrix-ssl" in PROJECT["scripts"]


def test_the_container_of_the_service_is_built_from_files_that_exist_and_runs_as_nobody() -> None:
    """``tests/api/serve/test_onnx.py`` compares the packages that it installs with what the service imports."""
    text = (ROOT / "docker" / "serve.Dockerfile").read_text("utf-8").replace("\\\n", " ")
    instructions = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    order = [words[0] for words in instructions]
    assert order == ["FROM", "WORKDIR", "COPY", "RUN", "COPY", "RUN", "USER", "ENV", "WORKDIR", "EXPOSE", "HEALTHCHECK",
                     "ENTRYPOINT", "CMD"]  # fmt: skip
    own = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert " ".join(instructions[0]) in own
    copied = {name.removeprefix("./") for words in instructions if words[0] == "COPY" for name in words[1:-1]}
    assert copied == {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert instructions[order.index("USER")][1] == "65534:65534"
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    packages = instructions[order.index("RUN")][6:]
    assert "fastapi" in packages and "torch" not in packages and set(packages) <= pinned


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """Dependencies are those of this environment, by a path that has neither the source nor its metadata."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    others = tmp_path / "others"  # all of this environment but this package
    others.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"(__editable__.*matrix_ssl|matrix_ssl|pip|setuptools)", path.name):
            (others / path.name).symlink_to(path)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (site / "others.pth").write_text(f"{others}\n")
    work = tmp_path / "work"
    work.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*words: str) -> str:
        command = [tmp_path / "env" / "bin" / "matrix-ssl", *words]
        result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = subprocess.run(
        [python, "-c", "import matrix_ssl; print(matrix_ssl.__file__)"],
        cwd=work, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(site)
    assert run("--version") == f"matrix-ssl, version {matrix_ssl.__version__}\n"
    assert "demo" in run("recipes")
    assert f'"torch": "{torch.__version__}"' in run("doctor", "--json")
    shorter = ["--set", "epochs=1", "--set", "data.subset=64", "--set", "batch_size=32"]
    assert "report  runs/demo/report.html" in run("pretrain", "demo", *shorter)
    checked = subprocess.run([python, "-m", "pip", "check"], cwd=work, env=environment, capture_output=True, text=True)
    assert "matrix-ssl" not in checked.stdout, checked.stdout
