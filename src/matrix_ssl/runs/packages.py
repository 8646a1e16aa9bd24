"""Which of the packages in this package's metadata are installed: those always required, and those of extras."""

import importlib.metadata
from typing import Any

from packaging.requirements import Requirement

PACKAGE = "matrix-ssl"
DEVELOPMENT = ("test", "docs", "dev")  # extras for work on this package


def describe_packages() -> list[dict[str, Any]]:
    """The packages that every installation requires: name, requirement, version, and whether it fits."""
    return [_describe(each) for each in _requirements() if each.marker is None]


def describe_extras() -> dict[str, list[dict[str, Any]]]:
    """The packages of every extra for users, described as in ``describe_packages``."""
    names = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    return {name: _describe_extra(name) for name in names if name not in DEVELOPMENT}


def _describe_extra(extra: str) -> list[dict[str, Any]]:
    packages = []
    for each in _requirements():
        if each.marker is None or not each.marker.evaluate({"extra": extra}):
            continue
        if each.name == PACKAGE:
            packages += [inner for name in sorted(each.extras) for inner in _describe_extra(name)]
        else:
            packages.append(_describe(each))
    return packages


def _requirements() -> list[Requirement]:
    return [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or []]


def _describe(requirement: Requirement) -> dict[str, Any]:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {
        "name": requirement.name,
        "required": str(requirement.specifier),
        "version": version,
        "fits": version is not None and requirement.specifier.contains(version, prereleases=True),
    }
