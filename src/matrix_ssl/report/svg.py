"""Drawing style of the report: colours that follow light and dark mode, and matplotlib figures as inline SVG.

Figures are drawn with placeholder colours; ``inline_svg`` replaces each with ``var(--name)``, so that the page's style
sheet decides and dark mode recolours axes, text and series alike. Text stays text and uses the page's font.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from matrix_ssl.runs.terminal import printable

WIDTH = 360  # of every figure, in its own units: a phone shows 332 to 400 pixels, so text of 11 units stays above 10 px
TEXT = 11

# Name -> (light mode, dark mode). Contrast with the background is at least 4.5, 3 for marks (WCAG 2.2 AA); tested.
COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#15171b"),
    "panel": ("#f5f6f7", "#1e2126"),
    "ink": ("#1b1f24", "#e6e8eb"),
    "soft": ("#5a626c", "#a3abb6"),
    "rule": ("#dfe2e6", "#343941"),
    "alarm": ("#9a2c12", "#ffb199"),
    "alarm-panel": ("#fdf1ec", "#33201b"),
    "series-0": ("#0067a5", "#6cb6ee"),
    "series-1": ("#c24d0a", "#ff9f66"),
    # Early to late: increasingly different from the background in lightness, to be readable without colour as well.
    "ramp-0": ("#e0782f", "#8064c4"),
    "ramp-1": ("#cf5548", "#a868c6"),
    "ramp-2": ("#ad3668", "#d670b0"),
    "ramp-3": ("#812d84", "#f0858b"),
    "ramp-4": ("#522c88", "#f8a867"),
    "ramp-5": ("#231f66", "#fbd75f"),
    "class-0": ("#0067a5", "#5aaee8"),
    "class-1": ("#c8500a", "#ff9250"),
    "class-2": ("#00805a", "#35c79b"),
    "class-3": ("#a83f8f", "#e58fd0"),
    "class-4": ("#8f6b00", "#e6c13c"),
    "class-5": ("#2f93cb", "#9fdcff"),
    "class-6": ("#4b2e83", "#a593f0"),
    "class-7": ("#d0405c", "#ff7f93"),
    "class-8": ("#6b7a1f", "#bccb62"),
    "class-9": ("#5b5f66", "#b4b8bf"),
    # Too many classes to distinguish: evenly spaced hues of one lightness.
    **{f"hue-{i}": (f"oklch(.58 .13 {15 * i})", f"oklch(.76 .13 {15 * i})") for i in range(24)},
}
_PLACEHOLDERS = {name: f"#0a0b{i:02x}" for i, name in enumerate(COLOURS)}
_NAMES = {placeholder: name for name, placeholder in _PLACEHOLDERS.items()}

# parse_math: a dollar sign in a class name stays a dollar sign. hashsalt: ids do not change from call to call.
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "matrix-ssl",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib; only measures the text, and wider than most page fonts
    "font.size": TEXT,
    "path.simplify": False,
}


def colour(name: str) -> str:
    """The placeholder to draw with for a name in ``COLOURS``."""
    return _PLACEHOLDERS[name]


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib settings of the report; a figure must be created and saved inside."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the user's matplotlibrc must not change the page
        matplotlib.rcParams.update(_SETTINGS)
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")  # the browser has other fonts
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")  # measuring only, as above
        yield


def new_figure(height: float) -> Figure:
    """An empty figure of the common width; ``height`` in the same units."""
    return Figure(figsize=(WIDTH / 72, height / 72), layout=ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=4 / 72))


def plain_axes(axes: Axes, *, values: Literal["x", "y"] = "y") -> None:
    """A base line, grid lines across the axis of values, and unobtrusive labels; nothing else."""
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colour("soft"))
    axes.spines["bottom"].set_linewidth(0.8)
    axes.grid(axis=values, color=colour("rule"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", color=colour("soft"), labelcolor=colour("soft"), length=3, width=0.8, labelsize=TEXT)
    names = colour("soft" if values == "y" else "ink")
    axes.tick_params(axis="y", labelcolor=names, length=0, labelsize=TEXT)


def inline_svg(figure: Figure, name: str, *, title: str, description: str) -> str:
    """The figure as an ``<svg>``; ``name``, unique on the page, prefixes every id, because inline SVGs share ids.

    Title and description are escaped and made ``printable``; names in the drawing itself must be so already.
    """
    arrange(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]  # after the metadata and global style
    if view_box is None:
        raise AssertionError("matplotlib wrote an SVG without a viewBox")
    body = re.sub(r"<[^<>]*>", lambda tag: _own_tag(tag.group(), name), body)  # texts, such as names, stay as they are
    body = re.sub(r"\n\s*", "\n", body)
    words = (escape(printable(text)) for text in (title, description))
    head = '<title id="{0}-title">{1}</title><desc id="{0}-desc">{2}</desc>'.format(name, *words)
    return f'<svg {view_box.group()} role="img" aria-labelledby="{name}-title {name}-desc">{head}{body}</svg>'


def arrange(figure: Figure) -> None:
    """Lays out a figure for an SVG once and for all; ``savefig`` would draw everything a second time to do so."""
    if engine := figure.get_layout_engine():
        figure.dpi = 72  # an SVG's
        FigureCanvasSVG(figure)  # in whose units text is measured
        engine.execute(figure)
        figure.set_layout_engine(None)


def _own_tag(tag: str, name: str) -> str:
    """A tag with the page's colours and font, shortened numbers, and ids prefixed with a name."""
    tag = re.sub(r' ?font-family: [^;"]*;?', "", tag)
    tag = re.sub(r'\b(d|x|y)="([^"]*)"', _shorten, tag)
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return re.sub(r"#0a0b[0-9a-f]{2}", lambda match: f"var(--{_NAMES[match.group()]})", tag)


def _shorten(match: re.Match[str]) -> str:
    """Numbers with two decimals: a hundredth of a pixel."""
    numbers = re.sub(r"(\.\d\d)\d+", r"\1", match.group(2))
    return f'{match.group(1)}="{" ".join(numbers.split())}"'
