"""The bar in a notebook, with the part of IPython that it uses."""

import io
import sys
import types
from typing import Any

import pytest
from rich.console import Console

from matrix_ssl.runs.display import Display


class Handle:
    """What ``IPython.display.display`` returns: keeps what the cell shows."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, html: str) -> None:
        self.shown.append(html)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    handle = Handle()

    def display(html: Any, *, display_id: bool) -> Handle:
        assert display_id and html == ""
        return handle

    module = types.SimpleNamespace(HTML=lambda text: text, display=display)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=module))
    return handle


def notebook(*, quiet: bool = False) -> Display:
    return Display(Console(file=io.StringIO(), force_jupyter=True, quiet=quiet))


def test_a_training(handle: Handle) -> None:
    with notebook().training(done=0, total=3) as display:
        for step in range(1, 4):
            display.step(step, 16, {"loss": 2.5, "effective_rank": 3.0}, ())
    assert len(handle.shown) == 2  # the first, and the last in spite of the pace
    assert handle.shown[0].startswith("<progress value=1 max=3></progress> <code>step 1/3")
    assert "step 3/3" in handle.shown[-1] and "loss 2.5  effective rank 3" in handle.shown[-1]


def test_images(handle: Handle) -> None:
    with notebook().bar("features <x>") as show:
        show(2000, 2000)
    assert handle.shown == [
        "<progress value=2000 max=2000></progress> <code>features &lt;x&gt; 2,000 of 2,000 images</code>"
    ]


def test_nothing_where_it_is_quiet(handle: Handle) -> None:
    with notebook(quiet=True).training(done=0, total=1) as display:
        display.step(1, 16, None, ())
    with notebook(quiet=True).bar("features") as show:
        show(1, 1)
    assert handle.shown == []
