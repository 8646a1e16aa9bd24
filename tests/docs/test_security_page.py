"""The page of what is promised names a test for each promise, and these tests exist."""

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
