"""A run or a public encoder: its network, the features that it computes, and its accuracies."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

from matrix_ssl import config as configuration
from matrix_ssl.api import evaluation
from matrix_ssl.api.caller import undisturbed
from matrix_ssl.api.keywords import assignments, listed, optional
from matrix_ssl.api.preprocess import Preprocess
from matrix_ssl.api.results import Results, table_html
from matrix_ssl.config import RunConfig
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.sources import Split
from matrix_ssl.encoder import Weights, load_encoder
from matrix_ssl.encoder.opening import Opened, open_encoder
from matrix_ssl.encoder.where import PATH, absolute, read_where
from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.baselines import Sizes
from matrix_ssl.evaluate.dense import BlockFeatures, MirrorMean
from matrix_ssl.evaluate.features import Embedding
from matrix_ssl.evaluate.protocols import PROTOCOLS
from matrix_ssl.evaluate.trained.protocols import EvaluationSettings
from matrix_ssl.runs.files import read_object
from matrix_ssl.runs.folder import SUMMARY, read_config
from matrix_ssl.runs.metrics import read_metrics

_DEFAULT_PROTOCOLS = PROTOCOLS[:3]


class Run:
    """An encoder and what is known about it.

    Args:
        where: a run folder, or an external encoder in any form that ``open`` accepts.
        data: the images on which it was trained, if they are an in-memory object of this program.
        out: the run folder to which ``evaluate`` writes the results of an external encoder; None: ``runs/NAME``.
        download: download published weights that are not in the local cache.

    Attributes:
        folder: the run folder; for an external encoder, the one that ``evaluate`` creates.

    Raises:
        MatrixSSLError: there is no such run or encoder.
    """

    def __init__(self, where: str | Path, *, data: Any = None, out: str | Path | None = None, download: bool = False):
        self.where, self._download, self._out = where, download, optional(expanded, out)
        self._data = optional(as_data, data)
        place = read_where(where)
        self._is_run = place.kind == PATH and place.path.is_dir()
        self.folder = place.path if self._is_run else self._out or Path("runs") / place.folder
        self.config  # noqa: B018, is checked here

    @cached_property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return read_config(self.folder) if self._is_run else self._opened.config

    @cached_property
    def _opened(self) -> Opened:
        return open_encoder(self.where, download=self._download)

    @property
    def summary(self) -> dict[str, Any]:
        """Steps, seconds and counts of a finished pre-training; empty until it has finished."""
        path = self.folder / SUMMARY
        summary: dict[str, Any] = read_object(path) if path.exists() else {}
        return summary

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` as dictionaries."""
        lines = read_metrics(self.folder)
        return [{key: value for key, value in line.items() if key != "run"} for line in lines]

    def encoder(self, *, weights: Weights = "student") -> nn.Module:
        """The encoder in evaluation mode on the CPU, which maps normalised images (n, c, s, s) to features (n, k).

        Its attribute ``preprocess`` builds such a batch from files, Pillow images or arrays, as evaluation does.

        Raises:
            CheckpointError: the pre-training is not finished, or the run does not have these weights.
        """
        if self._is_run:
            encoder = load_encoder(self.folder, weights=weights)
        elif weights == "student":
            encoder = copy.deepcopy(self._opened.encoder)
        else:
            encoder = open_encoder(self.where, weights=weights, download=self._download).encoder
        encoder.preprocess = Preprocess(self.config.data)  # type: ignore[assignment]
        return encoder

    def embed(
        self, data: Any = None, *, split: Split = "train", weights: Weights = "student", device: str = "auto",
        quiet: bool = False, data_root: str | Path | None = None, download: bool = False, layer: str | None = None,
        patches: bool = False, tta: bool = False, keep: str | Path | None = None, earlier: Embedding | None = None,
    ) -> Embedding:  # fmt: skip
        """Computes the features of images; unreadable images are skipped and listed.

        Args:
            data: as for ``pretrain``; None: the images of the pre-training.
            split: ``train`` (the whole dataset if it has no test split) or ``test``.
            weights: ``student``, or ``teacher``, its moving average.
            device, quiet, data_root, download: as for ``pretrain``.
            layer: the block whose output is used instead of the encoder's features, such as ``blocks.5``.
            patches: return the block's output (the last block's if ``layer`` is None) at every patch, as features
                (n, patches, k).
            tta: average the features of each image and its mirror image.
            keep: a folder for the features of a large dataset. They are memory-mapped from it, and calling this again
                resumes there, or reads only image files that are new or have changed.
            earlier: features that were computed before, as ``embedding_files.read_embedding`` reads them: images whose
                SHA-256 is among theirs are not computed again. Those of another encoder are ignored. Needs ``keep``.

        Raises:
            MatrixSSLError: the data or the run is at fault.
        """
        images = self._chosen(data) or self.config.data.source
        if not images:
            raise evaluation.no_dataset(self.where)
        if earlier is not None and keep is None:
            raise ConfigError("earlier needs a folder for the features of all images: name it by keep.")
        encoder: nn.Module = self.encoder(weights=weights)
        if layer is not None or patches:
            encoder = BlockFeatures(encoder, self.config.data, layer=layer, patches=patches)
        embedding = evaluation.embed(
            MirrorMean(encoder) if tta else encoder, self.config.data, images, split=split, device=device, quiet=quiet,
            data_root=optional(expanded, data_root), download=download, keep=optional(expanded, keep), digests=True,
            earlier=earlier,
        )  # fmt: skip
        return replace(embedding, encoder=absolute(str(self.where)))

    def evaluate(
        self,
        data: Any = None,
        *,
        test_data: Any = None,
        protocols: str | Sequence[str] = _DEFAULT_PROTOCOLS,
        baselines: str | Sequence[str] = (),
        baseline_sizes: Sizes = "own",
        settings: Mapping[str, Any] | Iterable[str] = (),
        label_list: str | Path | None = None,
        weights: Weights = "student",
        fresh: bool = False,
        max_unreadable: float | None = None,
        report: bool = True,
        device: str = "auto",
        quiet: bool = False,
        data_root: str | Path | None = None,
        download: bool = False,
    ) -> Results:
        """Measures accuracies on labelled images, alongside raw pixels and the untrained network; a rerun resumes.

        Args:
            data: training images for the classifiers, as for ``pretrain``; None: the images of the pre-training.
            test_data: test images; None: the dataset's test split or, without one, a held-out fifth of each class.
            protocols: the protocols to run; the default is ``["knn", "linear", "low-shot"]``.
            baselines: public encoders to measure as well, each in any form that ``open`` accepts.
            baseline_sizes: the image size for the baselines: ``own``, ``run`` or ``both``.
            settings: settings of the protocols that train, such as ``{"linear_sgd.epochs": 10}``.
            label_list: file that names the labelled images of ``semi-supervised``.
            weights: ``student``, or ``teacher``, its moving average.
            fresh: repeat protocols that already have results.
            max_unreadable: fraction of the images, in [0, 1], that may be unreadable; ten always may. None: the run's
                own setting.
            report: write the page of the run.
            device, quiet, data_root, download: as for ``pretrain``.

        Returns:
            All results on the dataset so far.

        Raises:
            MatrixSSLError: the data, the run or a setting is at fault, for example because the images have no labels.
        """
        with undisturbed():
            evaluated = evaluation.evaluate(
                self.where, self._chosen(data), out=self._out,
                test_data=optional(as_data, test_data), protocols=listed(protocols),
                baselines=listed(baselines), baseline_sizes=baseline_sizes,
                settings=configuration.override(EvaluationSettings(), assignments(settings)),
                label_list=optional(expanded, label_list), weights=weights, fresh=fresh, max_unreadable=max_unreadable,
                report=report, needs_labels=True, quiet=quiet, device=device, data_root=optional(expanded, data_root),
                download=download,
            )  # fmt: skip
        assert evaluated.results is not None  # the images have labels
        return Results(evaluated.results, evaluated.report)

    def explore(
        self, data: Any = None, *, out: str | Path, settings: Mapping[str, Any] | Iterable[str] | None = None,
        features: str | Path | None = None, split: Split = "train", weights: Weights = "student", device: str = "auto",
        quiet: bool = False, data_root: str | Path | None = None, download: bool = False,
    ) -> Path:  # fmt: skip
        """Writes a page with an interactive map of the images into a folder and returns the path of the page.

        Args:
            data: as for ``embed``.
            out: the folder; calling this again with the same folder resumes.
            settings: as for ``Collection.explore``.
            features: file in which the features are kept; None: a cache.
            split, weights, device, quiet, data_root, download: as for ``embed``.

        Raises:
            MatrixSSLError: the images, a setting, a CSV file or the folder is at fault.
        """
        from matrix_ssl.api import exploring  # which imports this module

        choices = configuration.override(exploring.ExploreSettings(), assignments(settings))
        return exploring.explore(
            self.where, self._chosen(data), out=expanded(out), choices=choices, features=optional(expanded, features),
            split=split, weights=weights, device=device, quiet=quiet, data_root=optional(expanded, data_root),
            download=download,
        ).page  # fmt: skip

    def __repr__(self) -> str:
        return f"Run({str(self.where)!r}: {', '.join(f'{name.lower()} {text}' for name, text in self._facts())})"

    def _repr_html_(self) -> str:
        from matrix_ssl.report.tables import read_evaluations  # takes a second to import

        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self._facts())
        tables = "".join(table_html(table) for one in read_evaluations(self.folder) for table in one.tables())
        return f"<table><caption>{escape(str(self.where))}</caption><tbody>{rows}</tbody></table>{tables}"

    def _facts(self) -> list[tuple[str, str]]:
        config, data = self.config, self.config.data
        facts = [("Encoder", f"{config.network.encoder}, {data.image_size} px")]
        if not self._is_run or "imported" in self.summary:
            return facts
        facts += [("Method", config.method.name), ("Images", f"{data.images:,}")]
        lines, summary = self.metrics, self.summary
        last = lines[-1] if lines else {}
        if "loss" in last:  # absent at step 0 of a run that starts from weights
            done = (
                f"{config.epochs} epoch{'s' * (config.epochs > 1)}" if summary else f"step {last['step']}, not finished"
            )
            facts += [("Training", done)]
            numbers = {"Loss": last["loss"], "Effective rank": last.get("effective_rank")}
            facts += [(name, f"{value:.4g}") for name, value in numbers.items() if value is not None]
        return facts

    def _chosen(self, data: Any) -> Any:
        return self._data if data is None else as_data(data)
