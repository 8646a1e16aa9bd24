"""Sentences on images that cannot be read: few are named one by one, many by their reasons."""

from collections import defaultdict
from collections.abc import Sequence

_ONE_BY_ONE = 10  # images, or reasons, that get a line of their own


def skipped(unreadable: Sequence[Sequence[str]]) -> list[str]:
    """A sentence for each of the images that are left out, pairs (where, why), or for each reason if they are many.

    The most frequent reason comes first.
    """
    if len(unreadable) <= _ONE_BY_ONE:
        return [f"Skipped {where}: {why}." for where, why in unreadable]
    reasons = _by_reason(unreadable)
    lines = [
        f"Skipped {f'{len(places):,} images, such as ' if len(places) > 1 else ''}{places[0]}: {why}."
        for why, places in reasons[:_ONE_BY_ONE]
    ]
    others = sum(len(places) for _, places in reasons[_ONE_BY_ONE:])
    return [*lines, *([f"Skipped for other reasons: {others:,} more."] if others else [])]


def main_reason(unreadable: Sequence[Sequence[str]]) -> str:
    """A sentence with the most frequent reason among at least one of such pairs, and an image that it holds for."""
    why, places = _by_reason(unreadable)[0]
    of = f"The reason for {len(places):,} of them, such as " if len(unreadable) > 1 else ""
    return f"{of}{places[0]}: {why}."


def _by_reason(unreadable: Sequence[Sequence[str]]) -> list[tuple[str, list[str]]]:
    """The reasons, each with its images in the order given; the most frequent first, ties in the order given."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for where, why in unreadable:
        places[why].append(where)
    return sorted(places.items(), key=lambda item: -len(item[1]))
