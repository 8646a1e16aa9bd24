"""Pages as a parser sees them, and what holds for every page."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "path", "use", "wbr"}
BLOCKS = {
    "title",
    "h1",
    "h2",
    "h3",
    "p",
    "li",
    "dt",
    "tr",
    "pre",
    "figcaption",
    "summary",
}  # a line each of a golden file


class Page(HTMLParser):
    """Elements with their attributes and text, and a check that tags are balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.lines: list[list[str]] = []  # the text of every block, but that of drawings
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in BLOCKS and "svg" not in self.open:
            self.lines.append([tag + ":"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((tuple(self.open), " ".join(data.split())))
            if not {"svg", "style"} & {*self.open}:
                self.lines[-1].append(self.texts[-1][1])

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, within: str = "body") -> str:
        """All text in elements of a kind."""
        return " ".join(text for path, text in self.texts if within in path)

    def those(self, *path: str) -> list[str]:
        """Texts directly within these elements, each the child of the one before it."""
        return [text for inside, text in self.texts if inside[-len(path) :] == path]


def read_page(path: Path) -> Page:
    """The page in a file."""
    return Page(path.read_text(encoding="utf-8"))


def check_page(page: Page) -> None:
    """Nothing from outside the file, no script, unique ids, references that resolve, tables and drawings described."""
    ids = [element["id"] for _, element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    used = {element["xlink:href"].removeprefix("#") for element in page.all("use")}
    used |= {element["clip-path"][5:-1] for _, element in page.elements if "clip-path" in element}
    for _, element in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            used |= set((element.get(name) or "").split())
    assert used and used <= set(ids)
    for tag, attributes in page.elements:
        assert tag != "script" and not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, name)
    assert "url(" not in page.text("style") and "@import" not in page.text("style")
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.all("meta"))
    assert all(cell.get("scope") in ("col", "row", "colgroup") for cell in page.all("th"))
    assert all(drawing["role"] == "img" and drawing["aria-labelledby"] for drawing in page.all("svg"))
    check_colours(page)


def check_colours(page: Page) -> None:
    """Every colour in a drawing follows the mode, and text takes the page's font."""
    inside = False
    for tag, attributes in page.elements:
        inside = inside or tag == "svg"
        style = (attributes.get("style") or "") if inside else ""
        assert "#" not in style.replace("url(#", "") and "font-family" not in style
        if inside and tag == "text":
            assert "fill: var(--" in style  # without it text is black, in dark mode too


def check_golden(page: Page, path: Path, *, until: str = "") -> None:
    """The text of the page, up to the line ``until``, is that of the file; a missing one is written, and fails."""
    lines = [" ".join(line) for line in page.lines]
    text = "\n".join(lines[: lines.index(until)] if until else lines) + "\n"
    if not path.exists():
        path.write_text(text, encoding="utf-8")
        raise AssertionError(f"{path} was missing and is written: read it, then run the test again.")
    assert text.splitlines() == path.read_text(encoding="utf-8").splitlines()
