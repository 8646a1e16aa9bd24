"""What is compared: the arms, the numbers of labels and the settings that all arms share.

An arm is a network and how it is used: ``frozen``, with a linear classifier on its features, or ``tuned``, fine-tuned
as a whole with the labels. Every arm gets the same labelled images, and every start the same training.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from matrix_ssl.config import Fraction, RunConfig, StartConfig, ViewConfig
from matrix_ssl.config.validation import settings
from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.trained.fine_tune import FineTune

Pairs = Annotated[tuple[tuple[PositiveFloat, PositiveFloat], ...], MinLen(1)] | None
Use = Literal["frozen", "tuned"]
Network = Literal["pixels", "random", "public", "public_small", "adapted", "scratch"]
PRETRAINED: tuple[Network, ...] = ("adapted", "scratch")  # trained here without labels
STARTS: tuple[Network, ...] = ("random", "public", "adapted", "scratch")  # of fine-tuning


@settings
class TuningSettings:
    """How a network is trained with labels, the same for every start and every number of labels.

    In step t of T, counted from 0, a rate is its initial value times (1 + cos(π t / T)) / 2.
    """

    steps: PositiveInt = 300  # at least, and rounded up to whole epochs
    batch_size: PositiveInt = 64  # all labelled images where they are fewer
    # candidates (encoder, head), whatever the batch, the head's for features whose mean square norm is 1. Gentle ones
    # begin at a logistic regression on the frozen features and keep BatchNorm's statistics, the others begin with a
    # random head and normalise by the batch. The best on a held-out fifth of the labelled images is used, or the first
    # gentle one where a class has a single image
    gentle_rates: Pairs = ((0.0005, 2.0), (0.002, 2.0))
    rates: Pairs = ((0.02, 40.0),)
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    view: ViewConfig = ViewConfig(crop_scale=(0.5, 1.0), flip=0.5)

    def __post_init__(self) -> None:
        """Raises ConfigError if there are no candidates."""
        if not (self.gentle_rates or self.rates):
            raise ConfigError("gentle_rates=none, rates=none: give the rates of one candidate or more.")

    def for_labels(self, count: int, fewest: int) -> list[FineTune]:
        """The candidate trainings on ``count`` labelled images, of which every class has at least ``fewest``."""
        size = min(self.batch_size, count)
        one = FineTune(
            optimizer="sgd", epochs=-(-self.steps // (count // size)), batch_size=size, momentum=self.momentum,
            weight_decay=self.weight_decay, view=self.view, decay="step", scale="unit",
        )  # fmt: skip
        kinds = [(self.gentle_rates, dataclasses.replace(one, head="regression", statistics="kept")), (self.rates, one)]
        candidates = [
            dataclasses.replace(kind, rates=tuple((256 / size * encoder, 256 / size * head) for encoder, head in pairs))
            for pairs, kind in kinds if pairs
        ]  # fmt: skip
        return candidates if fewest > 1 else [dataclasses.replace(candidates[0], rates=candidates[0].rates[:1])]


@dataclass(frozen=True)
class Arm:
    """A network and how it is used."""

    network: Network
    use: Use

    @property
    def key(self) -> str:
        """The arm's name in files."""
        return f"{self.network}_{self.use}"


@dataclass(frozen=True)
class Plan:
    """Everything that determines the results; ``plan.json`` in the folder."""

    base: RunConfig  # of the pre-training from scratch, complete; its seed is replaced
    adapted: RunConfig  # of the pre-training that starts from the public encoder
    reference: str  # where that encoder is
    sha256: str
    own_size: int  # pixels, of the images of the public encoder
    seeds: int
    test_images: int  # at most; 0: all
    tuning: TuningSettings

    @property
    def arms(self) -> list[Arm]:
        """All arms, frozen ones first."""
        small: list[Network] = ["public_small"] if self.own_size != self.base.data.image_size else []
        frozen: list[Network] = ["pixels", "random", "public", *small, *PRETRAINED]
        return [*(Arm(name, "frozen") for name in frozen), *(Arm(name, "tuned") for name in STARTS)]

    def pretraining(self, network: Network, seed: int) -> RunConfig:
        """The settings of a run without labels, whose initialisation is the random network."""
        return dataclasses.replace(self.adapted if network == "adapted" else self.base, seed=seed)


def make_plan(base: RunConfig, adapted: RunConfig, *, sha256: str, own_size: int, **rest: Any) -> Plan:
    """A plan in which everything that is trained has the network and the images of ``adapted``."""
    base = dataclasses.replace(base, network=adapted.network, data=adapted.data, start=StartConfig())
    return Plan(base, adapted, adapted.start.reference, sha256, own_size, **rest)
