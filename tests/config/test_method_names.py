"""Names of methods, their files and their own options."""

import pytest

from matrix_ssl.config import method_names as names


@pytest.mark.parametrize(
    ("method", "parts", "file", "short", "folder"),
    [
        ("simclr", ("simclr", {}), "simclr", "simclr", "simclr"),
        ("/a/my own.v2.py", ("/a/my own.v2.py", {}), "my own.v2.py", "my own.v2", "my own.v2"),
        ("m:Class", ("m:Class", {}), "m:Class", "m:Class", "m:Class"),
        (
            "simclr:hidden_dim=8:temperature=0.5",
            ("simclr", {"hidden_dim": "8", "temperature": "0.5"}),
            "simclr:hidden_dim=8:temperature=0.5",
            "simclr:hidden_dim=8:temperature=0.5",
            "simclr-hidden_dim=8-temperature=0.5",
        ),
        ("/a=b/own.py:text=x/y=z", ("/a=b/own.py", {"text": "x/y=z"}), "own.py:text=x/y=z", "own:text=x/y=z",
         "own-text=x-y=z"),
    ],
)  # fmt: skip
def test_parts(method: str, parts: tuple[str, dict[str, str]], file: str, short: str, folder: str) -> None:
    assert names.split_name(method) == parts
    assert names.join_name(*parts) == method
    assert (names.file_name(method), names.short_name(method), names.folder_name(method)) == (file, short, folder)


def test_names_to_show() -> None:
    given = ["simclr", "simclr:temperature=0.5", "/a/own.py:weight=2.0", "b/own.py:weight=2.0"]
    assert list(names.method_names(given).values()) == [
        "simclr", "simclr, temperature=0.5", "/a/own.py, weight=2.0", "b/own.py, weight=2.0",
    ]  # fmt: skip
