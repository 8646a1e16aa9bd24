"""What ``docs/architecture.md`` names as the new place of a name that moved is there."""

import importlib
import re
from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_new_places_exist() -> None:
    section = TABLE.read_text().partition("## Names that moved")[2]
    places = re.findall(
        r"`(matrix_ssl\.[\w.]+)`", "".join(line.split("|")[2] for line in section.splitlines()[5:] if "|" in line)
    )
    assert len(places) > 12
    for place in places:
        module, _, name = place.rpartition(".")
        parent = importlib.import_module(module)
        assert hasattr(parent, name) or importlib.import_module(place), place
