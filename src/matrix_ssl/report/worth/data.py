"""Reads ``worth.json``: arms, numbers of labels, accuracies and paired differences. What is missing is empty."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from matrix_ssl.report.comparison.statistics import Estimate
from matrix_ssl.report.records import Number, Text, read

RESULTS = "worth.json"
_NAMES = {
    "pixels_frozen": "raw pixels",
    "random_frozen": "random",
    "public_frozen": "public",
    "public_small_frozen": "public",
    "adapted_frozen": "adapted",
    "scratch_frozen": "scratch",
    "random_tuned": "supervised",
    "public_tuned": "public tuned",
    "adapted_tuned": "adapted tuned",
    "scratch_tuned": "scratch tuned",
}


@dataclass(frozen=True)
class Budget:
    """A number of labels."""

    key: Text
    text: Text
    labels: int
    a_class: Number


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one arm with one number of labels, in [0, 1]: mean over seeds and test images, and interval."""

    mean: Number
    low: Number
    high: Number
    seeds: Sequence[Number] = ()


@dataclass(frozen=True)
class Arm:
    """A network and its use; costs in seconds, for every seed that has ended."""

    network: Text
    use: Text
    image_size: int
    accuracy: Mapping[Text, Accuracy] = field(default_factory=dict)
    pretraining: Sequence[Mapping[Text, Any]] = ()
    evaluation: Sequence[Mapping[Text, Any]] = ()

    @property
    def key(self) -> str:
        return f"{self.network}_{self.use}"

    @property
    def errors(self) -> list[str]:
        """Why training runs of this arm failed; those without labels are attributed to the frozen arm."""
        own = self.pretraining if self.use == "frozen" else ()
        tuning = [cost for facts in self.evaluation for cost in facts.get("tuning", {}).values()]
        return [str(cost["error"]) for cost in (*own, *tuning) if "error" in cost]


@dataclass(frozen=True)
class Difference:
    """Arm a minus arm b with one number of labels."""

    a: Text
    b: Text
    budget: Text
    mean: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Data:
    """The images."""

    name: Text = ""
    train: int = 0
    test: int = 0
    classes: int = 0
    held_out: bool = False  # whether the test images are a part of a dataset without a test split


@dataclass(frozen=True)
class Public:
    """The public encoder."""

    reference: Text
    sha256: Text
    tensors: Text
    image_size: int


@dataclass(frozen=True)
class Results:
    """The file."""

    public: Public
    budgets: Sequence[Budget]
    arms: Sequence[Arm]
    command: Text = ""
    recipe: Text = ""
    data: Data = Data()
    seeds: int = 1
    image_size: int = 0
    epochs: Number = 0
    done: int = 0
    total: int = 0
    left_out: Sequence[Text] = ()
    differences: Sequence[Difference] = ()
    tuning: Mapping[Text, Any] = field(default_factory=dict)
    settings: Mapping[Text, Any] = field(default_factory=dict)
    adapted_settings: Mapping[Text, Any] = field(default_factory=dict)
    environment: Mapping[Text, Any] = field(default_factory=dict)

    def label(self, arm: Arm) -> str:
        """The name of an arm; the public encoder's includes its size if it is used at two."""
        sized = self.own_size_differs and arm.use == "frozen" and arm.network in ("public", "public_small")
        return _NAMES[arm.key] + (f" {arm.image_size} px" if sized else "")

    @property
    def own_size_differs(self) -> bool:
        """Whether the public encoder is used at the size of its own training and also at that of the images here."""
        return any(arm.network == "public_small" for arm in self.arms)

    @cached_property
    def by_key(self) -> dict[str, Arm]:
        return {arm.key: arm for arm in self.arms}

    def difference(self, a: str, b: str) -> dict[str, Estimate]:
        """Arm a minus arm b by the text of the number of labels; empty if they have nothing in common."""
        texts, estimates = {one.key: one.text for one in self.budgets}, {}
        for row in self.differences:
            if {row.a, row.b} == {a, b}:
                estimate = Estimate(row.mean, row.low, row.high)
                estimates[texts[row.budget]] = estimate if row.a == a else Estimate(-row.mean, -row.high, -row.low)
        return estimates


def read_worth(out: Path) -> Results:
    """The results in a folder; raises RunFolderError if ``worth.json`` is missing or damaged."""
    return read(Results, out / RESULTS, command="matrix-ssl worth")
