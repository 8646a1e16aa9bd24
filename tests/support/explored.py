"""Made-up contents of the page of explore, with thumbnails, for its tests and its benchmark."""

from pathlib import Path

import numpy as np

from matrix_ssl.report.explore.contents import Categories, Contents, Issue, Numbers
from matrix_ssl.report.explore.sheets import Sheets

MARKUP = "<img src=x onerror=alert(1)></script><b>&amp;"  # a name that must stay text
BACKWARDS = "photo\u202egpj.exe"  # shows as photoexe.jpg where it is not escaped


def make_contents(out: Path, n: int = 300, *, classes: int = 5, side: int = 32, neighbours: int = 6) -> Contents:
    """Images in as many clusters as classes; ``out`` gets the sheets of thumbnails, a colour a cluster.

    Rows 0 and 1 have names with markup and a change of direction; rows 2 and 3, and 4 to 6, are near-duplicates.
    """
    generator = np.random.default_rng(0)
    codes = np.arange(n) % classes
    angles = 2 * np.pi * codes / classes
    middles = 8 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = middles + generator.normal(size=(n, 2))
    near = (np.arange(n)[:, None] + classes * np.arange(1, neighbours + 1)) % n
    scores = np.linalg.norm(points - middles, axis=1)
    places = [f"photos/class {code}/{image:05d}.jpg" for image, code in enumerate(codes)]
    places[0], places[1] = f"photos/class 0/{MARKUP}.jpg", f"photos/class 1/{BACKWARDS}"
    names = [MARKUP, *(f"class {code}" for code in range(1, classes))]
    sheets = Sheets(out, count=n, side=side)
    colours = generator.integers(40, 216, (classes, 3))
    for start in range(sheets.start, n, 1000):
        images = np.arange(start, min(start + 1000, n))
        squares = np.broadcast_to(colours[codes[images]][:, None, None], (len(images), side, side, 3))
        sheets.add(images, squares.astype(np.uint8))
    sheets.finish()
    return Contents(
        title=f"photos {MARKUP}",
        facts=[("Images", f"{n:,}"), ("Encoder", MARKUP)],
        notes=["The map is made up."],
        places=places,
        files=True,
        points=points.astype(np.float32),
        neighbours=near,
        similarities=np.linspace(0.99, 0.5, neighbours) * np.ones((n, 1)),
        labels=Categories("label", codes, names),
        clusters=Categories("cluster", codes, [str(code + 1) for code in range(classes)]),
        representatives=[np.flatnonzero(codes == code)[:4] for code in range(classes)],
        duplicates=[np.array([2, 3]), np.array([4, 5, 6])],
        outliers=np.argsort(-scores)[:100],
        outlier_scores=scores,
        issues=[Issue(7, names[2], MARKUP, 0.04), Issue(8, names[3], names[1], 0.2)],
        columns=[
            Numbers("outlier score", scores),
            Numbers("confidence", np.where(np.arange(n) % 7 == 0, np.nan, generator.random(n))),
            Categories(MARKUP, np.where(np.arange(n) % 3, codes % 2, -1), ["<i>one</i>", "two"]),
        ],
        thumbnail=side,
        sheets=sheets.names,
    )
