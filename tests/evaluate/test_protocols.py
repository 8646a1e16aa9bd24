"""The protocols on feature matrices against scikit-learn, NumPy and their own promises."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from sklearn.manifold import trustworthiness
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.map import embedding_map, gallery, nearest_neighbours
from matrix_ssl.evaluate.probes import knn, linear, penalty
from matrix_ssl.evaluate.probes.accuracy import accuracy, summarise
from matrix_ssl.evaluate.probes.knn import knn_predict, nearest
from matrix_ssl.evaluate.probes.linear import fit_logistic_regression, scale_of
from matrix_ssl.evaluate.probes.low_shot import draw_labelled, low_shot


@pytest.fixture(scope="module")
def digits():
    """Raw pixels in [0, 1] of scikit-learn's digits: train, train labels, test, test labels."""
    x, y = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(x / 16, y, test_size=360, stratify=y, random_state=0)
    return tuple(torch.as_tensor(a) for a in (train, train_labels, test, test_labels))


def sklearn_fit(x, y, *, c=1.0):
    return SklearnLogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(np.asarray(x), np.asarray(y))


def clusters(n, d, classes, *, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return centres[labels] + spread * torch.randn(n, d, generator=generator, dtype=torch.float64), labels


class TestAccuracy:
    def test_fractions(self):
        predicted, labels = torch.tensor([0, 1, 1, 7]), torch.tensor([0, 1, 7, 7])
        assert accuracy(predicted, labels) == 0.75

    def test_summary(self):
        values = [0.1, 0.4, 0.7]
        expected = {"mean": pytest.approx(np.mean(values)), "sd": pytest.approx(np.std(values, ddof=1)), "n": 3}
        assert summarise(values) == expected
        assert summarise(torch.tensor(values, dtype=torch.float64)) == expected
        assert summarise([0.5]) == {"mean": 0.5, "sd": 0.0, "n": 1}

    def test_errors(self):
        with pytest.raises(DataError, match=r"shapes \(2,\) and \(3,\)"):
            accuracy(torch.zeros(2), torch.zeros(3))
        with pytest.raises(DataError, match="at least one"):
            accuracy(torch.zeros(0), torch.zeros(0))
        with pytest.raises(DataError, match="at least one measurement"):
            summarise([])


AXES = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])  # cosine similarities of these are exact
AXIS_ROWS = st.lists(st.integers(0, len(AXES) - 1), min_size=1, max_size=25)


class TestKNN:
    @pytest.mark.parametrize("k", [1, 5, 20])
    @pytest.mark.parametrize("temperature", [0.07, 1.0])
    def test_agrees_with_sklearn(self, digits, k, temperature):
        train, train_labels, test, _ = digits

        def weights(distance):
            return np.exp((1 - distance) / temperature)

        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
        expected = reference.fit(train, train_labels).predict(test)
        predicted = knn_predict(train, train_labels, test, k=k, temperature=temperature)
        assert predicted.tolist() == expected.tolist()

    def test_raw_digits(self, digits):
        train, train_labels, test, test_labels = digits
        assert accuracy(knn_predict(train, train_labels, test, k=1), test_labels) == pytest.approx(0.981, abs=5e-4)

    @given(train=AXIS_ROWS, test=AXIS_ROWS, chunk=st.integers(1, 30), data=st.data())
    def test_search_and_ties_whatever_the_chunk(self, train, test, chunk, data):
        k = data.draw(st.integers(1, len(train)))
        a, b = AXES[train], AXES[test]
        expected = np.argsort(-(b @ a.T), axis=1, kind="stable")[:, :k]
        indices, similarities = nearest(torch.from_numpy(a), torch.from_numpy(b), k=k, chunk=chunk)
        assert indices.tolist() == expected.tolist()
        assert similarities.tolist() == np.take_along_axis(b @ a.T, expected, axis=1).tolist()

    def test_similarities_below_zero_are_in_order(self):
        train, _ = clusters(50, 6, 3)
        test, _ = clusters(9, 6, 3, seed=1)
        indices, similarities = nearest(train, test, k=50, chunk=16)
        cosines = torch.nn.functional.cosine_similarity(test[:, None], train[None], dim=2)
        assert cosines.min() < -0.5
        assert indices.tolist() == cosines.argsort(dim=1, descending=True).tolist()
        torch.testing.assert_close(similarities.double(), cosines.gather(1, indices), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("k", [2, 5, 9])
    def test_equal_values_are_taken_in_order(self, k):
        rows = torch.tensor([[-0.0, 0.0, -0.0, 0.5, -0.5] * 4, [0.0] * 20, list(range(20))])
        values, columns = knn._largest(rows, k)
        assert columns.tolist() == np.argsort(-rows.numpy(), axis=1, kind="stable")[:, :k].tolist()
        assert torch.equal(values, rows.gather(1, columns))

    @pytest.mark.parametrize("chunk", [29, 64, 10_000])
    def test_chunks_do_not_matter(self, digits, chunk):
        train, train_labels, test, _ = digits
        expected = knn_predict(train, train_labels, test[:40], k=10)
        assert torch.equal(knn_predict(train, train_labels, test[:40], k=10, chunk=chunk), expected)

    def test_labels_need_not_be_contiguous(self, digits):
        train, train_labels, test, _ = digits
        renamed = 1_000_003 * train_labels.flip(0) + 5
        expected = 1_000_003 * knn_predict(train.flip(0), train_labels.flip(0), test, k=7) + 5
        assert torch.equal(knn_predict(train.flip(0), renamed, test, k=7), expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_only_storage(self, digits, dtype):
        train, train_labels, test, _ = digits
        half = knn_predict(train.to(dtype), train_labels, test.to(dtype), k=5)
        assert torch.equal(half, knn_predict(train.to(dtype).double(), train_labels, test.to(dtype).double(), k=5))

    def test_scale_of_the_features_does_not_matter(self, digits):
        train, train_labels, test, _ = (t.float() if t.is_floating_point() else t for t in digits)
        expected = knn_predict(train, train_labels, test, k=5)
        huge = knn_predict(train * 2.0**100, train_labels, test * 2.0**100, k=5)  # squares overflow in float32
        assert torch.equal(huge, expected)

    def test_equal_votes_go_to_the_nearest(self):
        train = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        labels = torch.tensor([9, 4, 2, 4])
        test = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        assert knn_predict(train, labels, test, k=2).tolist() == [4, 9]

    @pytest.mark.parametrize("temperature", [1e-4, 1e4])
    def test_zero_vectors_and_extreme_temperatures(self, temperature):
        train = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
        labels = torch.tensor([3, 5, 5])
        test = torch.tensor([[0.0, 0.0], [1.0, 0.1]])
        assert knn_predict(train, labels, test, k=1, temperature=temperature).tolist() == [3, 3]
        many = knn_predict(train, labels, test, k=3, temperature=temperature)
        assert many.tolist() == ([5, 3] if temperature < 1 else [5, 5])

    def test_errors(self):
        x, y = torch.ones(4, 2), torch.arange(4)
        with pytest.raises(DataError, match=r"k=5 neighbours need 5 training images, there are 4: lower k"):
            knn_predict(x, y, x, k=5)
        with pytest.raises(ConfigError, match="k=0"):
            knn_predict(x, y, x, k=0)
        with pytest.raises(ConfigError, match="temperature 0"):
            knn_predict(x, y, x, k=1, temperature=0)
        with pytest.raises(DataError, match="training features: empty"):
            knn_predict(x[:0], y[:0], x, k=1)
        with pytest.raises(DataError, match="test features: row 2 has a value that is not finite"):
            knn_predict(x, y, x.index_fill(0, torch.tensor([2]), torch.nan), k=1)
        with pytest.raises(DataError, match="training images have 2 features, test images 3"):
            knn_predict(x, y, torch.ones(1, 3), k=1)
        with pytest.raises(DataError, match=r"4 training images but labels of shape \(3,\)"):
            knn_predict(x, y[:3], x, k=1)
        with pytest.raises(DataError, match="remove unlabelled images"):
            knn_predict(x, y - 1, x, k=1)
        with pytest.raises(DataError, match=r"got torch.int64 of shape \(4,\)"):
            knn_predict(y, y, x, k=1)


def _gradient(point: torch.Tensor, x: torch.Tensor, labels: torch.Tensor, *, l2: float) -> torch.Tensor:
    """Of the mean objective of logistic regression, written down once more."""
    scores = x.double() @ point[:, :-1].T + point[:, -1]
    error = scores.softmax(1) - torch.nn.functional.one_hot(labels, len(point))
    return torch.cat([error.T @ x.double() + l2 * point[:, :-1], error.sum(0)[:, None]], 1) / len(x)


class TestLinear:
    def test_coefficients_of_sklearn_on_digits(self, digits):
        train, train_labels, test, test_labels = digits
        model = fit_logistic_regression(train, train_labels, classes=10)
        scaler = StandardScaler().fit(train)
        reference = sklearn_fit(scaler.transform(train), train_labels)
        assert model.converged
        np.testing.assert_allclose(model.weight, reference.coef_, atol=1e-4)
        np.testing.assert_allclose(model.bias - model.bias.mean(), reference.intercept_, atol=1e-4)
        assert model.predict(test).tolist() == reference.predict(scaler.transform(test)).tolist()
        assert accuracy(model.predict(test), test_labels) > 0.96

    @pytest.mark.parametrize(("n", "d", "l2"), [(30, 300, 1.0), (30, 300, 0.1), (40, 39, 10.0), (12, 13, 1.0)])
    def test_coefficients_of_sklearn_around_n_equal_to_d(self, n, d, l2):
        x, labels = clusters(n, d, 3)
        model = fit_logistic_regression(x, labels, classes=3, l2=l2)
        reference = sklearn_fit(StandardScaler().fit_transform(x), labels, c=1 / l2)
        assert model.converged
        np.testing.assert_allclose(model.weight, reference.coef_, atol=1e-4)
        np.testing.assert_allclose(model.bias - model.bias.mean(), reference.intercept_, atol=1e-4)

    def test_reduction_is_exact_when_images_are_repeated(self):
        x, labels = clusters(8, 50, 2)
        few = fit_logistic_regression(x.repeat(3, 1), labels.repeat(3), classes=2)  # rank 8 of 24 rows
        many = fit_logistic_regression(x.repeat(9, 1), labels.repeat(9), classes=2, l2=3.0)  # more rows than features
        torch.testing.assert_close(few.weight, many.weight, atol=1e-5, rtol=0)

    @pytest.mark.parametrize(("n", "d"), [(40, 100), (200, 10)])
    def test_a_path_reaches_the_solutions_of_single_fits(self, n, d):
        x, labels = clusters(n, d, 3)
        rows = torch.arange(n - 10)
        path = linear.fit_path(x, labels, classes=3, penalties=(100.0, 1.0, 0.1), rows=rows)
        for l2, fitted in zip((100.0, 1.0, 0.1), path, strict=True):
            alone = fit_logistic_regression(x[rows], labels[rows], classes=3, l2=l2)
            torch.testing.assert_close(fitted.weight, alone.weight, atol=1e-4, rtol=0)
            torch.testing.assert_close(fitted.mean, alone.mean)

    def test_the_chosen_penalty_is_the_best_of_sklearn_on_images_not_seen(self):
        x, labels = clusters(150, 60, 3, spread=6.0)  # noise: a weak penalty fits it
        fresh, answers = clusters(3000, 60, 3, spread=6.0)
        scaler = StandardScaler().fit(x)
        scores = {
            l2: sklearn_fit(scaler.transform(x), labels, c=1 / l2).score(scaler.transform(fresh), answers)
            for l2 in (1e4, 1e2, 1e-2)
        }
        chosen = penalty.choose_penalty(x, labels, classes=3, penalties=tuple(scores))
        assert scores[chosen] == max(scores.values()) > scores[1e-2] + 0.02

    def test_the_search_ends_where_weaker_penalties_only_get_worse(self, monkeypatch):
        x, labels = clusters(150, 60, 3, spread=6.0)
        tried, real = [], linear._minimise

        def counted(*arguments, l2, **settings):
            tried.append(l2)
            return real(*arguments, l2=l2, **settings)

        monkeypatch.setattr(linear, "_minimise", counted)
        chosen = penalty.choose_penalty(x, labels, classes=3)
        assert tried == list(penalty.PENALTIES[: len(tried)]) and len(tried) < len(penalty.PENALTIES)
        assert tried[-3] == chosen  # and two that were no better
        monkeypatch.setattr(penalty, "_PATIENCE", len(penalty.PENALTIES))
        assert penalty.choose_penalty(x, labels, classes=3) == chosen
        assert tried[-len(penalty.PENALTIES) :] == list(penalty.PENALTIES)

    @pytest.mark.parametrize(("n", "d", "share", "apart"), [(60, 16, 0.85, 0.7), (100, 32, 0.9, 0.5)])
    def test_penalties_that_leave_the_choice_to_the_biases_do_not_end_the_search(self, n, d, share, apart):
        """Few images of unequal classes: the strongest penalties give all images the more frequent class."""
        generator = torch.Generator().manual_seed(0)
        labels = (torch.arange(n) >= share * n).long()
        answers = (torch.arange(500) >= share * 500).long()
        x, fresh = (
            torch.randn(len(y), d, generator=generator) + apart * (2.0 * y[:, None] - 1) for y in (labels, answers)
        )
        scaler = StandardScaler().fit(x)
        scores = {
            l2: sklearn_fit(scaler.transform(x), labels, c=1 / l2).score(scaler.transform(fresh), answers)
            for l2 in penalty.PENALTIES
        }
        assert scores[1e4] == pytest.approx(share)  # of the more frequent class
        assert scores[penalty.choose_penalty(x, labels, classes=2)] > max(scores.values()) - 0.02

    def test_of_penalties_that_are_alike_the_first_is_chosen(self):
        x, labels = clusters(60, 5, 2, spread=0.01)
        assert penalty.choose_penalty(x, labels, classes=2, penalties=(3.0, 1.0)) == 3.0
        assert penalty.choose_penalty(x, labels, classes=2, penalties=(1.0, 3.0)) == 1.0

    def test_no_penalty_can_be_chosen_with_two_images_a_class(self):
        x, labels = clusters(4, 5, 2)
        with pytest.raises(DataError, match="three training images"):
            penalty.choose_penalty(x, labels, classes=2)

    def test_gradient_is_the_derivative(self):
        x, labels = clusters(20, 4, 3)
        point = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
        scores = x @ point[:, :-1].T + point[:, -1]
        loss = torch.nn.functional.cross_entropy(scores, labels, reduction="sum") + 0.35 * point[:, :-1].square().sum()
        (expected,) = torch.autograd.grad(loss / 20, point)
        value, gradient = linear._objective(point.detach(), x, labels, l2=0.7)
        assert value == pytest.approx(float(loss.detach()) / 20)
        torch.testing.assert_close(gradient, expected)

    def test_rows_are_summed_in_parts(self, digits, monkeypatch):
        train, train_labels, test = digits[0][:250], digits[1][:250], digits[2]
        whole = fit_logistic_regression(train, train_labels, classes=10)
        monkeypatch.setattr(linear, "_BLOCK", 100 * train.shape[1])
        parts = fit_logistic_regression(train, train_labels, classes=10)
        torch.testing.assert_close(parts.weight, whole.weight, atol=1e-4, rtol=0)
        torch.testing.assert_close(parts.scores(test), whole.scores(test), atol=1e-3, rtol=0)

    def test_large_problems_keep_their_features_in_float32(self, digits, monkeypatch):
        train, train_labels, test, _ = digits
        expected = fit_logistic_regression(train, train_labels, classes=10)
        monkeypatch.setattr(linear, "_FLOAT64_NUMBERS", train.numel() - 1)
        model = fit_logistic_regression(train, train_labels, classes=10)
        assert model.converged
        assert torch.equal(model.predict(test), expected.predict(test))
        torch.testing.assert_close(model.weight, expected.weight, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("l2", [1.0, 1e-14])
    def test_features_that_repeat_share_their_weight(self, l2):
        x, labels = clusters(80, 5, 3, spread=6.0)
        twice = fit_logistic_regression(torch.cat([x, x], 1), labels, classes=3, l2=2 * l2)
        once = fit_logistic_regression(x, labels, classes=3, l2=l2)
        torch.testing.assert_close(twice.weight, once.weight.repeat(1, 2) / 2, atol=1e-4, rtol=0)

    def test_the_curvature_is_that_of_the_objective_where_classes_are_alike(self):
        x, labels = clusters(20, 4, 3)
        start = torch.zeros(3, 5, dtype=torch.float64)
        hessian = torch.autograd.functional.jacobian(lambda point: _gradient(point, x, labels, l2=0.7), start)
        step = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        step -= step.mean(0)  # a change of all classes alike changes nothing but the penalty
        expected = torch.einsum("kdle,le->kd", hessian, step)
        found = step @ linear._curvature(x, start, l2=0.7)
        torch.testing.assert_close(found[:, :-1], expected[:, :-1])
        torch.testing.assert_close(found[:, -1], expected[:, -1] + 0.7 / 20 * step[:, -1])  # of the bias as well

    def test_half_precision_is_only_storage(self, digits):
        train, train_labels, test, _ = digits
        train, train_labels = train[:200], train_labels[:200]
        half = fit_logistic_regression(train.half(), train_labels, classes=10)
        full = fit_logistic_regression(train.half().double(), train_labels, classes=10)
        assert torch.equal(half.weight, full.weight)
        assert torch.equal(half.scores(test.half()), full.scores(test.half().double()))

    def test_deterministic_and_leaves_the_features_alone(self, digits):
        train, train_labels = digits[0][:200], digits[1][:200]
        before = train.clone()
        models = [fit_logistic_regression(train, train_labels, classes=10) for _ in range(2)]
        assert torch.equal(models[0].weight, models[1].weight)
        assert torch.equal(train, before)

    def test_class_without_images_is_never_predicted(self):
        x, labels = clusters(60, 5, 3)
        model = fit_logistic_regression(x, labels * 2, classes=6)
        compact = fit_logistic_regression(x, labels, classes=3)
        assert torch.equal(model.weight[[0, 2, 4]], compact.weight)
        assert model.bias[[1, 3, 5]].tolist() == [-torch.inf] * 3
        assert torch.equal(model.predict(x), 2 * compact.predict(x))

    def test_two_classes_are_half_as_penalised_as_in_sklearn(self):
        x, labels = clusters(60, 5, 2)
        model = fit_logistic_regression(x, labels, classes=2, l2=1.0)
        reference = sklearn_fit(StandardScaler().fit_transform(x), labels, c=2.0)
        np.testing.assert_allclose((model.weight[1] - model.weight[0])[None], reference.coef_, atol=1e-4)

    def test_stopping_early_is_reported(self, digits):
        train, train_labels, _, _ = digits
        model = fit_logistic_regression(train, train_labels, classes=10, max_iterations=3)
        assert not model.converged
        assert model.iterations == 3

    def test_scale_is_that_of_sklearn(self):
        x, _ = clusters(500, 4, 2)
        constant = torch.full((500, 2), 0.1, dtype=torch.float64)
        nearly = 1e8 + 1e-9 * x[:, :1]  # below the rounding error of its mean
        x = torch.cat([x, constant, torch.zeros(500, 1), nearly, 1e3 + x[:, :1]], dim=1)
        reference = StandardScaler().fit(x)
        scale = scale_of(x)
        np.testing.assert_allclose(scale.mean, reference.mean_, rtol=1e-12)
        np.testing.assert_allclose(scale.std, reference.scale_, rtol=1e-9)
        assert scale.std[4:8].tolist() == [1, 1, 1, 1]

    def test_given_scale(self):
        x, labels = clusters(40, 6, 3)
        others, _ = clusters(300, 6, 3, seed=1)
        model = fit_logistic_regression(x, labels, classes=3, scale=scale_of(others))
        scaler = StandardScaler().fit(others)
        np.testing.assert_allclose(model.weight, sklearn_fit(scaler.transform(x), labels).coef_, atol=1e-4)

    def test_errors(self):
        x, y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
        with pytest.raises(ConfigError, match="l2=0"):
            fit_logistic_regression(x, y, classes=3, l2=0)
        with pytest.raises(DataError, match="label 2, but there are 2 classes"):
            fit_logistic_regression(x, y, classes=2)
        with pytest.raises(DataError, match="every training image has the label 1"):
            fit_logistic_regression(x, torch.ones_like(y), classes=3)
        with pytest.raises(DataError, match="row 4 has a value that is not finite"):
            fit_logistic_regression(x.index_fill(0, torch.tensor([4]), torch.inf), y, classes=3)
        with pytest.raises(DataError, match="fitted on 2 features, got 5"):
            fit_logistic_regression(x, y, classes=3).predict(torch.ones(1, 5))


class TestLowShot:
    def test_one_draw_is_the_sklearn_probe(self, digits):
        train, train_labels, test, _ = digits
        scaler = StandardScaler().fit(train)
        chosen = draw_labelled(train_labels, shots=5, draw=1, seed=4)
        reference = sklearn_fit(scaler.transform(train[chosen]), train_labels[chosen])
        predicted = low_shot(train, train_labels, test, shots=5, draws=2, seed=4)
        assert predicted[1].tolist() == reference.predict(scaler.transform(test)).tolist()

    def test_raw_digits(self, digits):
        *training, test, answers = digits
        means = [float((low_shot(*training, test, shots=shots) == answers).double().mean()) for shots in (1, 5)]
        assert means == pytest.approx([0.602, 0.842], abs=0.005)

    @given(
        counts=st.lists(st.integers(3, 9), min_size=2, max_size=5),
        draw=st.integers(0, 3),
        seed=st.integers(0, 100),
        shots=st.integers(1, 3),
    )
    def test_drawn_without_replacement_and_nested(self, counts, draw, seed, shots):
        labels = torch.cat([torch.full((count,), 10 * i) for i, count in enumerate(counts)])
        chosen = draw_labelled(labels, shots=shots, draw=draw, seed=seed)
        assert labels[chosen].tolist() == [10 * i for i in range(len(counts)) for _ in range(shots)]
        assert len(chosen.unique()) == len(chosen)
        assert set(chosen.tolist()) <= set(draw_labelled(labels, shots=3, draw=draw, seed=seed).tolist())

    def test_every_image_is_drawn_equally_often(self):
        labels = torch.arange(20) % 2
        counts = torch.zeros(20)
        for draw in range(1000):
            counts[draw_labelled(labels, shots=3, draw=draw, seed=0)] += 1
        assert counts.sub(300).abs().max() < 5 * (1000 * 0.3 * 0.7) ** 0.5

    def test_images_do_not_depend_on_the_features(self, digits):
        train, train_labels, test, _ = digits
        first = low_shot(train, train_labels, test, shots=1, draws=3)
        same = low_shot(train * 2.0**-7, train_labels, test * 2.0**-7, shots=1, draws=3)
        assert torch.equal(first, same)  # another encoder with the same standardised features
        assert not torch.equal(first, low_shot(train, train_labels, test, shots=1, draws=3, seed=1))

    def test_errors(self):
        x, y = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 6, 6, 8, 8])
        with pytest.raises(DataError, match=r"class 6 has 2 labelled training images, fewer than the 3 shots"):
            low_shot(x, y, x, shots=3)
        with pytest.raises(ConfigError, match="shots=0"):
            low_shot(x, y, x, shots=0)
        with pytest.raises(ConfigError, match="draws=0"):
            low_shot(x, y, x, shots=1, draws=0)
        with pytest.raises(DataError, match="fitted on 2 features, got 1"):
            low_shot(x, y, x[:, :1], shots=1)


class TestEmbeddingMap:
    def test_keeps_neighbours_and_repeats_itself(self, digits):
        train = digits[0]
        indices, places = embedding_map(train, most=200, seed=3)
        assert (indices.dtype, places.dtype, places.shape) == (np.int64, np.float32, (200, 2))
        assert (np.diff(indices) > 0).all()
        assert indices.max() < len(train)
        assert trustworthiness(train[indices], places, metric="cosine") > 0.95
        again = embedding_map(train, most=200, seed=3)
        assert np.array_equal(again[0], indices)
        assert np.array_equal(again[1], places)
        assert not np.array_equal(embedding_map(train, most=10, seed=4)[0], embedding_map(train, most=10, seed=3)[0])

    @pytest.mark.parametrize("n", [1, 2, 4, 5, 12])
    @pytest.mark.parametrize("d", [1, 2, 30])
    def test_few_images(self, n, d):
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(n))
        indices, places = embedding_map(x)
        assert indices.tolist() == list(range(n))
        assert places.shape == (n, 2)
        assert np.isfinite(places).all()

    def test_tiny_map_is_the_principal_plane(self):
        x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.5]])  # normalised: an equilateral triangle
        _, places = embedding_map(x)
        sides = np.linalg.norm(places - np.roll(places, 1, axis=0), axis=1)
        np.testing.assert_allclose(sides, 2**0.5, rtol=1e-6)

    @pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [0.1, 0.2, 0.3]])
    def test_collapsed_features_are_one_point(self, row):
        _, places = embedding_map(torch.tensor([row]).repeat(20, 1))
        np.testing.assert_allclose(places, 0.0, atol=1e-6)

    def test_errors(self):
        with pytest.raises(ConfigError, match="most=0"):
            embedding_map(torch.ones(3, 2), most=0)
        with pytest.raises(DataError, match="row 1 has a value that is not finite"):
            embedding_map(torch.tensor([[1.0], [torch.nan]]))


class TestGallery:
    def test_neighbours_against_numpy(self, digits):
        train, queries = digits[0], torch.tensor([5, 0, 700])
        x = train.numpy() / np.linalg.norm(train.numpy(), axis=1, keepdims=True)
        similarity = x[queries] @ x.T
        similarity[range(3), queries] = -2
        expected = np.argsort(-similarity, axis=1)[:, :4]
        indices, similarities = nearest_neighbours(train, queries, k=4)
        assert indices.tolist() == expected.tolist()
        np.testing.assert_allclose(similarities, np.take_along_axis(similarity, expected, axis=1), atol=1e-6)

    def test_query_is_left_out_among_copies(self):
        indices, similarities = nearest_neighbours(torch.eye(2)[[0, 0, 0, 0, 1]], torch.tensor([0, 3, 4]), k=2)
        assert indices.tolist() == [[1, 2], [0, 1], [0, 1]]
        assert similarities.tolist() == [[1, 1], [1, 1], [0, 0]]

    def test_arrays(self):
        x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        made = gallery(
            x,
            torch.tensor([3, 4, 5, 6]),
            lambda i: torch.full((3, 8, 6), i, dtype=torch.uint8),
            queries=torch.tensor([2, 0]),
            k=1,
            where="abcd".__getitem__,
        )
        assert {name: (array.dtype, array.shape) for name, array in made.items()} == {
            "gallery_query": (np.uint8, (2, 8, 6, 3)),
            "gallery_neighbours": (np.uint8, (2, 1, 8, 6, 3)),
            "gallery_query_label": (np.int64, (2,)),
            "gallery_neighbour_label": (np.int64, (2, 1)),
            "gallery_similarity": (np.float32, (2, 1)),
            "gallery_query_where": (np.dtype("<U1"), (2,)),
            "gallery_neighbour_where": (np.dtype("<U1"), (2, 1)),
        }
        assert made["gallery_query_where"].tolist() == ["c", "a"]
        assert made["gallery_neighbour_where"].tolist() == [["d"], ["b"]]
        assert made["gallery_query"][:, 0, 0, 0].tolist() == [2, 0]
        assert made["gallery_neighbours"][:, 0, 7, 5, 2].tolist() == [3, 1]
        assert made["gallery_query_label"].tolist() == [5, 3]
        assert made["gallery_neighbour_label"].tolist() == [[6], [4]]
        np.testing.assert_allclose(made["gallery_similarity"], 1 / 1.01**0.5, rtol=1e-6)

    def test_thumbnails_shrink_and_share_a_canvas(self):
        shapes = {0: (1, 300, 100), 1: (1, 20, 40)}
        made = gallery(
            torch.ones(2, 2),
            torch.tensor([-1, -1]),
            lambda i: torch.full(shapes[i], 7, dtype=torch.uint8),
            queries=torch.tensor([0]),
            k=1,
            where=str,
        )
        tall, wide = made["gallery_query"][0, :, :, 0], made["gallery_neighbours"][0, 0, :, :, 0]
        assert tall.shape == wide.shape == (64, 40)
        assert (tall == 7).sum() == 64 * 21
        assert (wide == 7).sum() == 20 * 40
        assert (wide[:22] == 255).all()
        assert (wide[22:42] == 7).all()
        assert made["gallery_query_label"].tolist() == [-1]
        assert made["gallery_neighbour_label"].tolist() == [[-1]]

    def test_errors(self):
        x = torch.ones(3, 2)
        with pytest.raises(DataError, match="k=3 neighbours beside the query need 4 images, there are 3"):
            nearest_neighbours(x, torch.tensor([0]), k=3)
        with pytest.raises(ConfigError, match="k=0"):
            nearest_neighbours(x, torch.tensor([0]), k=0)
        with pytest.raises(DataError, match=r"indices from 0 to 2, got \[3\]"):
            nearest_neighbours(x, torch.tensor([3]), k=1)
