"""The transformer of scikit-learn: its contract, pipelines, and scikit-learn's own checks."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from matrix_ssl import EncoderTransformer
from matrix_ssl.errors import DataError, UnreadableImage
from tests.api.conftest import LABELS, PIXELS

SETTINGS = {
    "data.image_size": 8, "network.width": 8, "method.hidden_dim": 8, "method.output_dim": 8, "data.workers": 0,
    "precision": "float32",
}  # fmt: skip
TINY: dict[str, Any] = {"epochs": 1, "device": "cpu", "random_state": 0, "settings": SETTINGS}


def test_features_of_images() -> None:
    transformer = EncoderTransformer(**TINY)
    features = transformer.fit_transform(PIXELS, LABELS)
    assert features.dtype == np.float32 and features.shape == (40, 16)
    assert transformer.n_features_in_ == 20 * 24 * 3 and transformer.config_.batch_size == 32
    assert list(transformer.get_feature_names_out()) == [f"encodertransformer{k}" for k in range(16)]
    again = pickle.loads(pickle.dumps(transformer))
    for same in (transformer, again, clone(transformer).fit(PIXELS)):
        assert np.array_equal(same.transform(PIXELS), features)
    other = clone(transformer).set_params(random_state=1).fit(PIXELS)
    assert not np.array_equal(other.transform(PIXELS), features)
    assert transformer.transform(PIXELS[:3, :9]).shape == (3, 16)  # images of any size
    assert [line["step"] for line in transformer.metrics_] == [1]


def test_a_pipeline() -> None:
    pipeline = make_pipeline(EncoderTransformer(**TINY), LogisticRegression())
    assert pipeline.fit(PIXELS[:30], LABELS[:30]).score(PIXELS[30:], LABELS[30:]) > 0.8
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1]}, cv=2, error_score="raise")
    assert search.fit(PIXELS, LABELS).best_score_ > 0.5


def test_paths_of_files(tmp_path: Path) -> None:
    paths = np.array(sorted(map(str, Path("photos").glob("*/*.png"))))
    transformer = EncoderTransformer(**TINY, out=tmp_path / "run").fit(paths[:30])
    assert transformer.transform(paths[30:]).shape == (10, 16) and not hasattr(transformer, "n_features_in_")
    assert (tmp_path / "run" / "report.html").exists()


def test_every_image_has_a_row_or_is_named(tmp_path: Path) -> None:
    paths = sorted(map(str, Path("photos").glob("*/*.png")))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    transformer = EncoderTransformer(**TINY).fit([*paths[:20], str(tmp_path / "broken.png")])  # as pretrain does
    for lost in ("broken.png", "absent.png"):
        with pytest.raises(UnreadableImage, match=lost):
            transformer.transform([paths[0], str(tmp_path / lost), paths[1]])
    assert transformer.transform([paths[0]] * 3).shape == (3, 16)
    transformer.fit(PIXELS)
    assert transformer.n_features_in_ == 20 * 24 * 3
    assert not hasattr(transformer.fit(paths[:20]), "n_features_in_")


def test_columns_of_tables() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": sorted(map(str, Path("photos").glob("*/*.png"))), "size": range(40)})
    transformer = EncoderTransformer(**TINY).fit(table["path"])
    expected = transformer.transform(table["path"])
    for same in (table[["path"]], table["path"].astype("category"), table[["path"]].to_numpy()):
        assert np.array_equal(transformer.transform(same), expected)
    chosen = ColumnTransformer([("images", EncoderTransformer(**TINY), ["path"])], remainder="passthrough")
    assert np.allclose(chosen.fit_transform(table)[:, :16], expected)
    with pytest.raises(DataError, match="A table of 2 columns as images: pass the column that has their paths"):
        transformer.transform(table)


def test_a_module_as_encoder() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    transformer = EncoderTransformer(**TINY, encoder=module).fit(PIXELS)
    assert transformer.transform(PIXELS).shape == (40, 5)
    assert isinstance(clone(transformer).encoder, nn.Sequential)


def test_the_generators_of_the_program_stay() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.get_rng_state(), np.random.get_state()[1]
    EncoderTransformer(**TINY).fit(PIXELS)
    assert torch.equal(torch.get_rng_state(), expected[0]) and np.array_equal(np.random.get_state()[1], expected[1])


def test_mistakes() -> None:
    with pytest.raises(NotFittedError):
        EncoderTransformer().transform(PIXELS)
    with pytest.raises(DataError, match="expected images"):
        EncoderTransformer(**TINY).fit(PIXELS.reshape(40, -1))


def test_scikit_learn_knows_that_it_takes_images() -> None:
    """Its checks need two-dimensional data; of an estimator for images it skips them, which the next test repairs."""
    with pytest.warns(SkipTestWarning, match="Can't test estimator EncoderTransformer which requires input"):
        results = estimator_checks.check_estimator(EncoderTransformer(**TINY))
    assert {result["status"] for result in results} == {"passed"}


class OnRows(EncoderTransformer):
    """The transformer on images that are made of rows of numbers, for checks with two-dimensional data."""

    def __init__(self, *, epochs: int = 1, batch_size: int = 2, device: str = "cpu", random_state: Any = None,
                 settings: Any = None):  # fmt: skip
        super().__init__(
            epochs=epochs, batch_size=batch_size, device=device, random_state=random_state, settings=settings
        )

    def images(self, X: Any, *, reset: bool) -> np.ndarray:
        rows = validate_data(self, X, reset=reset, ensure_min_samples=2 if reset else 1)
        return (1 / (1 + np.exp(-np.asarray(rows, dtype=float))))[:, :, None].repeat(4, axis=2)

    def fit(self, X: Any, y: Any = None) -> "OnRows":
        images = self.images(X, reset=True)
        columns = self.n_features_in_
        super().fit(images)
        self.n_features_in_ = columns  # of an image there are four times as many
        return self

    def transform(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return super().transform(self.images(X, reset=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


@pytest.mark.parametrize("name", [
    "check_estimators_pickle", "check_n_features_in",
    *(pytest.param(name, marks=pytest.mark.slow) for name in (
        "check_fit_check_is_fitted",
        "check_estimators_overwrite_params", "check_dict_unchanged", "check_fit_idempotent",
        "check_transformer_preserve_dtypes",
    )),
])  # fmt: skip
def test_some_checks_of_scikit_learn_on_rows(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a check may warn of what it tries
        getattr(estimator_checks, name)("OnRows", OnRows(random_state=0, settings=SETTINGS))


@pytest.mark.slow
def test_all_checks_of_scikit_learn_on_rows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = estimator_checks.check_estimator(OnRows(random_state=0, settings=SETTINGS), on_fail=None)
    failed = {result["check_name"]: str(result["exception"]) for result in results if result["status"] == "failed"}
    assert failed == {} and len(results) > 40
