"""The page of what is promised names a test for each promise, and these tests exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| (?!Promise|-)", line)]


def test_every_promise_names_tests_that_exist() -> None:
    assert len(ROWS) >= 15
    for row in ROWS:
        names = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert names, row
        assert all("def test_" in (ROOT / name).read_text("utf-8") for name in names), row


def test_the_commands_that_are_killed_are_named() -> None:
    tree = ast.parse((ROOT / "tests" / "faults" / "test_kills_of_commands.py").read_text("utf-8"))
    (killed,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMANDS"
    ]
    assert isinstance(killed, ast.Dict)
    names = {
        "llm finetune" if name == "finetune" else name for name in map(ast.literal_eval, filter(None, killed.keys))
    }
    for page, start in (("security", "One of the commands"), ("reliability", "A kill before any write of")):
        lines = (ROOT / "docs" / f"{page}.md").read_text("utf-8").splitlines()
        (row,) = [line for line in lines if line.startswith(f"| {start} ")]
        assert set(re.findall(r"`([^`/]+)`", row)) == names
