"""What every page does with text from elsewhere."""

from pathlib import Path

from matrix_ssl.report.listing import Listing
from matrix_ssl.report.template import breakable


def test_characters_that_are_not_seen_are_escapes_everywhere(tmp_path: Path) -> None:
    hidden = "a\u202eb\x1bc\udce9"
    rows = ((f"q{hidden}", f"{hidden}.png", hidden),)
    listing = Listing("Search", (f"S{hidden}", f"N{hidden}"), ("query", "path", "label"), rows, "query",
                      facts=(("Encoder", f"E{hidden}"),))  # fmt: skip
    html = listing.page(tmp_path / "x.html").read_text(encoding="utf-8")
    assert not {"\u202e", "\x1b"} & set(html)
    for first in ("Query q", "S", "N", "E", "label "):
        assert f"{first}a\\u202eb\\x1bc\\udce9" in html


def test_names_break_after_their_marks_and_stay_text() -> None:
    assert breakable("a_<b>.c\u200b") == "a_<wbr>&lt;b&gt;.<wbr>c\\u200b"
