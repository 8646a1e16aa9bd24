"""Everything measured with a run's encoder, as tables: the same for the terminal, the page and the model card.

The only sources are the files ``RUN/evaluation/DATASET/PROTOCOL.json`` and ``RUN/detection/NAME/result.json``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from matrix_ssl.errors import RunFolderError, some
from matrix_ssl.report.formats import ABSENT, duration, markdown, percent, whole
from matrix_ssl.report.measures import BASELINES, measure_name
from matrix_ssl.report.records import Number, Text, parse
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import identity

_ORDER = ("knn", "linear", "low-shot", "transfer", "linear-sgd", "semi-supervised", "fine-tune")
OWN, BY_CLASS, LABELLED = "this encoder", "by class", "labelled images"  # columns of the table of accuracies
MEAN_OF_CLASSES = "By class: mean of the accuracies of the classes; guessing"
_PRECISIONS = ("AP", "AP50", "AP75")

T = TypeVar("T")


@dataclass(frozen=True)
class ResultTable:
    """A title, a note on what the numbers are, column headings, and rows that begin with their heading."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The columns and rows as a table in Markdown."""
        rule = ["---"] * len(self.columns)
        escaped = ([markdown(cell) for cell in cells] for cells in self.rows)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (list(map(markdown, self.columns)), rule, *escaped))


@dataclass(frozen=True)
class Score:
    """One measure of one network, in fractions of the test images."""

    accuracy: Number
    interval: tuple[Number, Number]  # of 95 %
    mean_per_class: Number
    sd_over_draws: Number = 0.0  # of the accuracy, over random draws of the labelled images
    labelled: int | None = None  # number of labelled training images, if not all are labelled
    images: int | None = None  # test images that were judged
    classes: dict[Text, Any] = field(default_factory=dict)  # those that have any of these images

    def __str__(self) -> str:
        """The accuracy in percent, and its standard deviation if there are draws."""
        return percent(self.accuracy) + (f" ± {percent(self.sd_over_draws)}" if self.sd_over_draws else "")


@dataclass(frozen=True)
class Split:
    """The size of a training or test split."""

    images: int
    classes: int


@dataclass(frozen=True)
class Difference:
    """How much more often one is right than the other on the same images, with its 95 % interval."""

    difference: Number
    interval: tuple[Number, Number]
    draws: int = 1  # of labelled images, which the interval accounts for
    p: Number | None = None  # of McNemar's exact test, where it applies

    def __str__(self) -> str:
        """In percentage points."""
        low, high = (percent(bound, sign="+") for bound in self.interval)
        return f"{percent(self.difference, sign='+')} points ({low} to {high})"


@dataclass(frozen=True)
class Public:
    """A frozen public encoder under one protocol, and this encoder minus it."""

    reference: Text
    sha256: Text
    tensors: Text
    image_size: int
    feature_seconds: Number
    measures: dict[str, Score]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class ProtocolResult:
    """The file of one protocol on one dataset, limited to what is shown."""

    set: dict[str, Split]  # train and test
    measures: dict[str, Score]
    baselines: dict[str, dict[str, Score]] = field(default_factory=dict)
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)  # this encoder minus the baselines
    public: dict[Text, Public] = field(default_factory=dict)  # by name
    weights: str = "student"
    training_images: int | None = None
    not_judged: Sequence[Text] = ()  # classes without a test image that could be read
    pretraining_images: bool = True  # whether the images are those of the pre-training

    def __post_init__(self) -> None:
        """Raises ValueError without the two splits and their classes."""
        if not self.set.keys() >= {"train", "test"} or min(split.classes for split in self.set.values()) < 1:
            raise ValueError("The sizes of both splits are needed.")


@dataclass(frozen=True)
class Evaluation:
    """The results of all protocols on one dataset."""

    name: str  # of the dataset's folder
    results: Sequence[ProtocolResult]  # at least one
    remarks: Sequence[str]  # sentences below the table

    @property
    def weights(self) -> str:
        return self.results[0].weights

    @property
    def test(self) -> Split:
        return self.results[0].set["test"]

    @property
    def judged(self) -> Split:
        """The test images that could be read, and the classes that they belong to."""
        score = next(iter(self.results[0].measures.values()), None)
        if score is None or score.images is None or not score.classes:
            return self.test
        return Split(score.images, len(score.classes))

    def _of_all(self) -> str:
        """How many of the test images were judged, if some or whole classes were not; otherwise empty."""
        lost, absent = self.test.images - self.judged.images, self.results[0].not_judged
        text = f"{lost} of {self.test.images} test images could not be read and were not judged. " if lost else ""
        if absent:
            text += (
                f"{len(absent)} of {self.test.classes} classes have no judged test image: {some(map(repr, absent))}."
            )
        return text.strip()

    @property
    def is_own(self) -> bool:
        """Whether the images are those of the pre-training."""
        return all(result.pretraining_images for result in self.results)

    def tables(self) -> list[ResultTable]:
        """The accuracies and, if there are public encoders, this encoder minus each of them."""
        return [self.table(), *([self._differences()] if self._public() else [])]

    def table(self) -> ResultTable:
        """A row for every measure: accuracy, interval, mean of the classes, baselines, labelled images."""
        public = self._public()
        judged = self.judged
        title = f"Accuracy in % on {self.name}, {whole(judged.images)} test images of {judged.classes} classes"
        note = (
            f"95 %: bootstrap interval over test images. {MEAN_OF_CLASSES} gives {percent(1 / self.test.classes)}. "
            "Untrained network: same architecture, random weights. ±: standard deviation over random draws of the "
            "labelled images."
        )
        columns = ["", OWN, "95 %", BY_CLASS, *BASELINES.values(), *public, LABELLED]
        rows = [
            [
                measure_name(key),
                str(score),
                f"{percent(score.interval[0])} to {percent(score.interval[1])}",
                percent(score.mean_per_class),
                *(str(result.baselines.get(baseline, {}).get(key, ABSENT)) for baseline in BASELINES),
                *(str(one.measures.get(key, ABSENT)) if (one := result.public.get(n)) else ABSENT for n in public),
                ABSENT if key.startswith("low_shot") else whole(score.labelled or result.training_images) or ABSENT,
            ]
            for result in self.results
            for key, score in result.measures.items()
        ]
        return ResultTable(title, " ".join([note, *self.remarks]), columns, rows)

    def _public(self) -> dict[str, Public]:
        """The public encoders of all protocols by name."""
        return {name: one for result in self.results for name, one in result.public.items()}

    def _differences(self) -> ResultTable:
        public = self._public()
        origins = [
            f"{name}: {one.reference}, SHA-256 {one.sha256[:12]}; {one.tensors.rstrip('.')}; features in "
            f"{duration(one.feature_seconds)}."
            for name, one in public.items()
        ]
        crossed = any(d.draws > 1 for r in self.results for one in r.public.values() for d in one.differences.values())
        draws = "; over draws of labelled images too where there are any, with Satterthwaite's interval for both"
        note = (
            "Percentage points, paired over the same test images, with the 95 % interval of the bootstrap"
            f"{draws if crossed else ''}. An interval that includes 0 supports no difference. Each public encoder is "
            "frozen and gets images of the size beside its name in its own normalisation, enlarged where they are "
            "smaller."
        )

        def cell(result: ProtocolResult, name: str, key: str) -> str:
            one = result.public.get(name)
            return str(one.differences.get(key, ABSENT) if one else ABSENT).replace(" points", "")

        rows = [
            [measure_name(key), *(cell(result, name, key) for name in public)]
            for result in self.results
            if result.public
            for key in result.measures
        ]
        title = f"This encoder minus public encoders on {self.name}"
        return ResultTable(title, " ".join([note, *origins]), ["", *public], rows)


def read_evaluations(run: Path, skipped: list[str] | None = None) -> list[Evaluation]:
    """The contents of ``RUN/evaluation``, one entry per dataset; damaged files are skipped and named in the remarks.

    Args:
        skipped: receives the remarks on datasets without any result.
    """
    folders = sorted((run / "evaluation").glob("*/"))
    return [one for folder in folders if (one := read_evaluation(folder, skipped))]


def read_evaluation(folder: Path, skipped: list[str] | None = None) -> Evaluation | None:
    """The contents of a dataset's folder; None if it has no result, with its remarks added to ``skipped``."""
    remarks: list[str] = []
    results = [_read(ProtocolResult, folder / f"{protocol}.json", remarks) for protocol in _ORDER]
    if gain := _read(Difference, folder / "linear-sgd-against-linear.json", remarks):
        remarks.append(f"linear-sgd minus linear: {gain}.")
    present = [result for result in results if result]
    if not present:
        (skipped if skipped is not None else []).extend(remarks)
        return None
    evaluation = Evaluation(folder.name, present, [])
    return replace(evaluation, remarks=[*filter(None, [evaluation._of_all()]), *remarks])


def read_tables(run: Path, skipped: list[str] | None = None) -> list[ResultTable]:
    """A table for every dataset on which the encoder was evaluated, and one for all detection runs.

    Args:
        skipped: receives the remarks on damaged files for which no table is left.
    """
    remarks: list[str] = []
    rows = []
    for path in sorted((run / "detection").glob("*/result.json")):
        result = _read(_Detection, path, remarks)
        values = [kind.get(key) for kind in (result.box, result.mask) for key in _PRECISIONS] if result else []
        if any(value is not None for value in values):
            rows.append([path.parent.name, *map(percent, values)])
    columns = ["", *(f"{kind} {key}" for kind in ("box", "mask") for key in _PRECISIONS)]
    note = " ".join(["Average precision of COCO in percent.", *remarks])
    detection = [ResultTable("Detection and segmentation", note, columns, rows)] if rows else []
    if skipped is not None and not rows:
        skipped += remarks
    return [*(table for one in read_evaluations(run, skipped) for table in one.tables()), *detection]


@dataclass(frozen=True)
class _Detection:
    """Average precisions of one detection run."""

    box: dict[str, Number | None] = field(default_factory=dict)
    mask: dict[str, Number | None] = field(default_factory=dict)


def _read(kind: type[T], path: Path, remarks: list[str]) -> T | None:
    """The record in a file; None if it is missing, or damaged, which becomes a remark."""
    if not path.exists():
        return None
    try:
        values = read_json(path)
        if isinstance(values, dict) and values.pop("run", None) not in (None, identity(path.parent.parent.parent)):
            remarks.append(f"{path.parent.name}/{path.name} belongs to a different run and is skipped.")
            return None
        return parse(kind, values, path, remedy="")
    except RunFolderError:
        remarks.append(f"{path.parent.name}/{path.name} is damaged and skipped.")
        return None
