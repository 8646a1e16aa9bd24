"""benchmarks/README.md names every result and every program, and nothing that does not exist."""

import re
from pathlib import Path

from benchmarks.harness import RESULTS, ROOT

INDEX = ROOT / "benchmarks" / "README.md"
TEXT = INDEX.read_text("utf-8")
FOLDERS = ("experiments", "pages", "speed")


def test_every_result_is_listed() -> None:
    named = re.findall(r"`(\w+\.json)`", TEXT)
    assert sorted(named) == sorted(path.name for path in RESULTS.glob("*.json"))


def test_every_program_is_listed() -> None:
    named = {f"{folder}.{name}" for folder, name in re.findall(rf"`({'|'.join(FOLDERS)})\.(\w+)", TEXT)}
    files = [path for folder in FOLDERS for path in (ROOT / "benchmarks" / folder).glob("*.py")]
    programs = {
        f"{path.parent.name}.{path.stem}" for path in files if '__name__ == "__main__"' in path.read_text("utf-8")
    }
    helpers = {"speed.loss_memory"}  # started by speed.losses
    assert named == programs - helpers


def test_programs_have_the_options_that_are_shown() -> None:
    shown = re.findall(rf"`({'|'.join(FOLDERS)})\.(\w+)((?: [^`|]*)?)`((?:, the second with `[^`]*`)?)", TEXT)
    assert len(shown) > 40
    for folder, name, words, second in shown:
        source = (ROOT / "benchmarks" / folder / f"{name}.py").read_text("utf-8")
        for option in re.findall(r"--[\w-]+", words + second):
            assert f'"{option}"' in source, (name, option)


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) > 50
    for link in links:
        assert (INDEX.parent / Path(link)).exists(), link
