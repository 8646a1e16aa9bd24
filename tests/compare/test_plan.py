"""The plan of a comparison: which trials and runs there are, what differs between them, and where they run."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from matrix_ssl import config
from matrix_ssl.cli.compare import _reference, compare
from matrix_ssl.compare import job as jobs
from matrix_ssl.compare.comparison import ComparisonRun
from matrix_ssl.compare.options import divide, lacking, read_options, with_options
from matrix_ssl.compare.plan import (
    RATE,
    Job,
    Plan,
    baselines,
    choose_methods,
    most_trials,
    next_trial,
    runs,
    with_seeds,
)
from matrix_ssl.config.recipes import list_recipes
from matrix_ssl.data import open_source
from matrix_ssl.data.statistics import mean_and_deviation
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.methods import complete_options, find_method, list_methods
from matrix_ssl.runs import devices
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.training.configure import configure, outline
from tests.support.quick import cross, some
from tests.support.runs import make_images

OWN = '''"""A method of one's own."""

from matrix_ssl.methods.simsiam import SimSiam


class Own(SimSiam):
    """SimSiam under another name."""

    variants = ()
'''


# the methods that every encoder suits
CONVOLUTIONAL = tuple(name for name in list_methods() if not find_method(name).needs_tokens)


COLOUR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}  # without a probability of the jitter


def demo() -> config.RunConfig:
    """The run of the recipe ``demo``, on a residual network."""
    return outline("demo", None, ())


def make_plan(*settings: str, recipe: str = "demo", data: str | None = None, **values: object) -> Plan:
    """A plan of two methods and two seeds, with other values where they are given."""
    usual = {
        "methods": ("matrix_ssl", "simsiam"), "reference": "matrix_ssl", "seeds": 2, "budget": 8, "rivals_budget": 0,
        "trials": 4, "tuning_budget": 3, "tuning_settings": (), "measure": "linear",
    }  # fmt: skip
    return Plan(base=dataclasses.replace(outline(recipe, data, settings), seed=0), **usual | values)


def flat(run: config.RunConfig) -> dict[str, object]:
    """A configuration by dotted keys."""
    return dict(config.flatten(config.to_dict(run)))


class TestChooseMethods:
    def test_all_are_those_of_the_package(self) -> None:
        assert choose_methods("all", demo()) == CONVOLUTIONAL
        assert len(CONVOLUTIONAL) >= 17

    def test_files_are_found_in_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        source = "from matrix_ssl.methods.simsiam import SimSiam\nclass Own(SimSiam):\n    pass\n"
        (tmp_path / "own.py").write_text(source)
        assert choose_methods("simclr,~/own.py", demo()) == ("simclr", str(tmp_path / "own.py"))

    def test_those_that_need_tokens_are_among_all_for_an_encoder_that_has_them(self) -> None:
        pytest.importorskip("timm")
        base = options_of("cifar10_vit")
        assert choose_methods("all", base) == tuple(list_methods())
        assert choose_methods("m_mae,simclr", base) == ("m_mae", "simclr")
        with pytest.raises(ConfigError) as caught:
            choose_methods("simclr,m_mae", demo())
        assert str(caught.value) == (
            "method.name='m_mae' needs an encoder with tokens, and network.encoder='tiny_resnet' has none: use --set "
            "network.encoder=timm/vit_tiny_patch16_224 --set network.patch_size=1."
        )

    def test_the_order_is_kept_and_repetitions_are_not(self) -> None:
        assert choose_methods(" simsiam, byol,simsiam ,", demo()) == ("simsiam", "byol")
        assert choose_methods("simsiam,all", demo())[0] == "simsiam"
        assert sorted(choose_methods("simsiam,all", demo())) == list(CONVOLUTIONAL)

    def test_files_are_known_by_their_whole_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "own.py").write_text(OWN)
        (tmp_path / "inner").mkdir()
        monkeypatch.chdir(tmp_path / "inner")
        assert choose_methods("byol,../own.py,../inner/../own.py", demo()) == ("byol", str(tmp_path / "own.py"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "--methods '': list at least one method, or use 'all'."),
            (" , ", "--methods ' , ': list at least one method, or use 'all'."),
            ("simsaim", "method.name='simsaim' is not a method. Did you mean 'simsiam'?"),
            ("byol,al", "method.name='al' is not a method."),
            ("absent.py", "absent.py': there is no such file."),
            ("simsiam,{}/simsiam.py", "--methods: two methods are called 'simsiam'; rename the file."),
            ("{}/empty.py", "expected one subclass of Method in the file, found 0."),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "simsiam.py").write_text(OWN)
        (tmp_path / "empty.py").write_text("")
        with pytest.raises(ConfigError) as caught:
            choose_methods(text.format(tmp_path), demo())
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("import math\nx = = 1\n", "SyntaxError: invalid syntax (broken.py, line 2)"),
            ("import math\n\nmath.sqroot(2)\n", "line 3: AttributeError: module 'math' has no attribute 'sqroot'"),
            ("def f():\n    return 1 / 0\n\n\nf()\n", "line 2: ZeroDivisionError: division by zero"),
            ("import absent_package\n", "line 1: ModuleNotFoundError: No module named 'absent_package'"),
            ("import sys\nsys.exit('enough')\n", "line 2: SystemExit: enough"),
        ],
    )
    def test_a_file_that_cannot_be_executed_is_named_with_line_and_reason(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        (tmp_path / "broken.py").write_text(text)
        with pytest.raises(ConfigError) as caught:
            choose_methods(str(tmp_path / "broken.py"), demo())
        assert str(caught.value) == f"method.name='{tmp_path / 'broken.py'}': {message}"


def search(plan: Plan, method: str, best_of: Sequence[int], *, count: int = 0) -> list[Job]:
    """All trials of a method, or ``count``; after each, the best so far is that of the number in ``best_of``."""
    trials: list[Job] = []
    for number in range(count or most_trials(plan, method)):
        best = best_of[number - 1] if trials else 0
        trials.append(next_trial(plan, method, [job.settings for job in trials], best))
    return trials


def trial(plan: Plan, method: str, number: int) -> Job:
    """The trial of a number where the unchanged recipe stays the best."""
    return search(plan, method, [0] * number, count=number + 1)[-1]


class TestTrials:
    RATE = 0.005  # of the recipe

    def test_the_first_is_the_recipe_as_it_is(self) -> None:
        plan = make_plan()
        job = trial(plan, "simsiam", 0)
        assert (job.settings, job.stage, job.number, job.epochs) == ({}, "tuning", 0, 3)
        assert job.folder == Path("tuning/simsiam/trial-0") and job.label == "simsiam, trial 0"
        assert job.config == dataclasses.replace(configure("demo", None, (), method="simsiam"), epochs=3, seed=0)

    def test_rates_beside_that_of_the_recipe_then_variants_then_rates_in_between(self) -> None:
        """The recipe itself stays the best."""
        found = [job.settings for job in search(make_plan(), "matrix_ssl", [0] * 9)]
        assert found == [
            {},
            {RATE: 2 * self.RATE},
            {RATE: self.RATE / 2},
            {"method.ridge": 1 / 32, "method.uniformity_weight": 1 / 32},
            {"method.ridge": 0.3, "method.uniformity_weight": 0.3},
            {"method.predictor": False},
            {RATE: pytest.approx(2**0.5 * self.RATE)},
            {RATE: pytest.approx(self.RATE / 2**0.5)},
        ]

    @pytest.mark.parametrize("factor", [2.0, 0.5])
    def test_the_best_rate_is_none_at_the_end_of_those_tried(self, factor: float) -> None:
        far = 1 if factor > 1 else 2
        found = [job.settings for job in search(make_plan(), "vicreg", [0, far, far, 3, 3, 5, 5, 5])]
        assert found[3:] == [
            {RATE: factor**2 * self.RATE},  # the best so far
            {RATE: factor**3 * self.RATE},
            {RATE: factor**2 * self.RATE, "method.covariance_weight": 4.0},  # the best so far
            {RATE: factor**2 * self.RATE, "method.covariance_weight": 16.0},
            {RATE: factor**2 * self.RATE, "method.covariance_weight": 0.25},
        ]

    def test_rates_go_on_as_long_as_they_help(self) -> None:
        found = [job.settings.get(RATE, self.RATE) for job in search(make_plan(), "simsiam", [0, 1, 1, 3, 4])]
        assert found == [self.RATE * factor for factor in (1, 2, 0.5, 4, 8, 16)]

    @pytest.mark.parametrize("peak", [-4.0, -2.7, -0.3, 0.0, 0.4, 1.2, 3.5])
    def test_six_trials_come_near_the_best_rate_wherever_it_is(self, peak: float) -> None:
        """Accuracy falls on both sides of 2 to the power of ``peak`` times the rate of the recipe."""
        plan, trials, powers = make_plan(), [], []
        for _ in range(6):
            best = min(range(len(powers)), key=lambda n: abs(powers[n] - peak), default=0)
            trials.append(next_trial(plan, "simsiam", [job.settings for job in trials], best))
            powers.append(math.log2(trials[-1].settings.get(RATE, self.RATE) / self.RATE))
        assert min(abs(power - peak) for power in powers) <= 0.5

    def test_variants_are_tried_at_the_best_rate_and_rates_in_between_with_the_best_variant(self) -> None:
        best_of = [0, 1, 1, 1, 4, 4, 6, 7]
        found = [job.settings for job in search(make_plan(), "vicreg", best_of, count=9)]
        double = 2 * self.RATE
        assert found[3:] == [
            {RATE: 4 * self.RATE},
            {RATE: double, "method.covariance_weight": 4.0},
            {RATE: double, "method.covariance_weight": 16.0},
            {RATE: double, "method.covariance_weight": 0.25},  # replaces the variant that was the best
            {RATE: pytest.approx(2**1.5 * self.RATE), "method.covariance_weight": 0.25},
            {RATE: pytest.approx(2**1.75 * self.RATE), "method.covariance_weight": 0.25},
        ]

    def test_a_variant_replaces_another_one_whole(self) -> None:
        """MEC's third variant has no predictor, which the others must not inherit."""
        earlier = [job.settings for job in search(make_plan(), "mec", [0] * 3, count=4)]
        earlier.append({"method.predictor": False})
        assert next_trial(make_plan(), "mec", earlier, 4).settings == {"method.distortion": 4.0}

    @pytest.mark.parametrize("method", some(list_methods(), "matrix_ssl", "mec", "vicreg", "simsiam"))
    def test_every_trial_is_different_whatever_is_found(self, method: str) -> None:
        plan = make_plan(recipe="cifar10")
        count = most_trials(plan, method)
        later = [0, 1, 2, min(4, count - 1)]
        for first, second, third in itertools.product((0, 1), (0, 1, 2), later):
            best_of = [0, first, *(min(max(second, third if n > third else 0), n - 1) for n in range(3, count))]
            jobs_ = search(plan, method, best_of)
            configs = [flat(job.config) for job in jobs_]
            assert all(a != b for a, b in itertools.combinations(configs, 2)), best_of
            assert len({job.folder for job in jobs_}) == count

    def test_the_rate_is_that_of_the_recipe(self) -> None:
        """Also for the recipe that otherwise takes the rate of each method's paper."""
        plan = make_plan(recipe="imagenet", data="photos", methods=("matrix_ssl", "barlow_twins"))
        job = trial(plan, "barlow_twins", 1)
        assert trial(plan, "barlow_twins", 0).config.optimizer.learning_rate == 0.5
        assert job.config.optimizer.learning_rate == job.settings[RATE] == 1.0

    def test_settings_of_trials_change_trials_only(self) -> None:
        plan = make_plan(tuning_settings=("network.width=16", "batch_size=128"))
        tried, run = trial(plan, "simsiam", 1), runs(plan, "simsiam", {})[0]
        assert (tried.config.network.width, tried.config.batch_size) == (16, 128)
        assert (run.config.network.width, run.config.batch_size) == (32, 256)

    def test_a_variant_that_the_recipe_has_already_is_no_trial(self) -> None:
        plan = make_plan(recipe="images_small", data="digits")
        for method in ("matrix_ssl", "mec"):
            assert most_trials(plan, method) == 5 + len(find_method(method).variants) - 1
            settings = [job.settings for job in search(plan, method, [0] * 7)]
            assert len(settings) == 7 and not any("method.predictor" in given for given in settings)

    def test_a_trial_of_several_seeds_is_judged_by_their_mean(self, tmp_path: Path) -> None:
        plan = make_plan(methods=("simsiam",), reference="simsiam", trials=3, trial_seeds=2)
        run = ComparisonRun(plan, tmp_path, command="")
        first = [(job.folder, job.config.seed, job.label) for job in run.waiting() if job.stage == "tuning"]
        assert first == [
            (Path("tuning/simsiam/trial-0"), 0, "simsiam, trial 0"),
            (Path("tuning/simsiam/trial-0-seed-1"), 1, "simsiam, trial 0, seed 1"),
        ]
        # the second trial has the highest single accuracy, the third the highest mean
        accuracies = {(0, 0): 0.5, (0, 1): 0.5, (1, 0): 0.9, (1, 1): 0.2, (2, 0): 0.55, (2, 1): 0.6}
        for done in range(6):
            assert run.count() == (done, 6 + 2 + 1)  # trials, runs, baselines
            job = run.waiting()[0]
            assert (job.number, job.trial_seed) == divmod(done, 2)
            value = accuracies[job.number, job.trial_seed]
            run.failures[job.folder] = {
                "accuracy": {"linear": {"mean": value}, "knn_20": {"mean": 0.1}},
                "seconds": 2.0,
            }
        tried = run.tried("simsiam")
        means = [result["accuracy"]["linear"]["mean"] for _, result in tried]
        assert means == pytest.approx([0.5, 0.55, 0.575]) and run.best(tried)[0] == 2
        assert tried[1][1]["seeds"] == [{"linear": 0.9, "knn_20": 0.1}, {"linear": 0.2, "knn_20": 0.1}]
        assert tried[1][1]["seconds"] == 4.0
        assert {job.stage for job in run.waiting()} == {"run", "baselines"}
        job = trial(plan, "simsiam", 2)
        run.failures[with_seeds(plan, job)[1].folder] = {"error": "it diverged"}
        assert run.tried("simsiam")[2][1] == {"error": "it diverged"} and run.best(run.tried("simsiam"))[0] == 1

    def test_a_plan_with_one_seed_a_trial_is_that_of_earlier_versions(self) -> None:
        assert "trial_seeds" not in make_plan().describe()
        assert make_plan(trial_seeds=2).describe()["trial_seeds"] == 2
        job = trial(make_plan(), "simsiam", 1)
        assert with_seeds(make_plan(), job) == [job]

    def test_all_methods_get_the_same_number_or_an_error(self) -> None:
        counts = {name: 5 + len(find_method(name).variants) for name in list_methods()}
        assert {name: most_trials(make_plan(), name) for name in list_methods()} == counts
        fewest = min(counts, key=lambda name: counts[name])
        methods = tuple(list_methods())
        ComparisonRun(make_plan(methods=methods, trials=counts[fewest]), Path("absent"), command="")
        with pytest.raises(ConfigError) as caught:
            ComparisonRun(make_plan(methods=methods, trials=counts[fewest] + 1), Path("absent"), command="")
        assert str(caught.value) == f"--trials {counts[fewest] + 1}: {fewest!r} has {counts[fewest]} different ones."


def result(linear: float, knn: float = 0.5) -> dict[str, object]:
    """What a trial has found."""
    return {"accuracy": {"linear": {"mean": linear}, "knn_20": {"mean": knn}}}


class TestBestTrial:
    @pytest.mark.parametrize(
        ("results", "best"),
        [
            ([], 0),
            ([result(0.3), result(0.5), result(0.4)], 1),
            ([result(0.5, 0.2), result(0.5, 0.3), result(0.4, 0.9)], 1),  # then the neighbours decide
            ([result(0.5), result(0.5)], 0),  # then the earlier
            ([{"error": "diverged"}, result(0.1)], 1),
            ([{"error": "diverged"}, {"error": "diverged"}], 0),
        ],
    )
    def test_is_the_most_accurate(self, results: list[dict], best: int) -> None:
        plan = make_plan()
        tried = [(trial(plan, "simsiam", number), found) for number, found in enumerate(results)]
        number, settings = ComparisonRun(plan, Path("absent"), command="").best(tried)
        assert number == best and settings == trial(plan, "simsiam", best).settings

    def test_is_chosen_by_the_measure_that_was_asked_for(self) -> None:
        plan = make_plan(measure="knn_20")
        tried = [(trial(plan, "simsiam", i), result(*r)) for i, r in enumerate([(0.9, 0.1), (0.1, 0.9)])]
        assert ComparisonRun(plan, Path("absent"), command="").best(tried)[0] == 1


class TestRuns:
    def test_longer_runs_are_those_of_the_rivals(self) -> None:
        plan = make_plan(rivals_budget=16)
        assert [(job.epochs, job.number) for job in runs(plan, "matrix_ssl", {})] == [(8, 0), (8, 1)]
        longer = runs(plan, "simsiam", {})
        assert [(job.epochs, job.number) for job in longer] == [(8, 0), (8, 1), (16, 0), (16, 1)]
        assert [(job.config.epochs, job.config.seed) for job in longer] == [(8, 0), (8, 1), (16, 0), (16, 1)]
        assert len({job.folder for job in longer}) == 4
        assert longer[3].folder == Path("runs/simsiam-16-epochs/seed-1")

    def test_no_run_is_there_twice_where_the_budgets_are_equal(self) -> None:
        assert len(runs(make_plan(rivals_budget=8), "simsiam", {})) == 2

    # imagenet, too, though its methods have recipes of their own
    @pytest.mark.parametrize("recipe", some(list_recipes(), "demo", "cifar10", "imagenet"))
    def test_nothing_differs_between_methods_but_the_method(self, recipe: str) -> None:
        data = None if options_of(recipe).data.source else "photos"
        plan = make_plan("data.subset=99", recipe=recipe, data=data, methods=tuple(list_methods()), rivals_budget=16)
        for number in range(2):
            for make in (lambda m, n=number: trial(plan, m, n), lambda m, n=number: runs(plan, m, {})[n]):
                configs = [flat(make(method).config) for method in CONVOLUTIONAL]
                shared = [{k: v for k, v in c.items() if not k.startswith("method.")} for c in configs]
                assert all(other == shared[0] for other in shared)
                assert shared[0].keys() >= {"views.0.flip", "network.encoder", "epochs", "data.subset", "seed", RATE}
                assert [c["method.name"] for c in configs] == list(CONVOLUTIONAL)

    def test_a_masked_autoencoder_takes_the_crops_of_one_view(self) -> None:
        plan = make_plan(recipe="cifar10_small", methods=("mae", "simclr"), reference="simclr")
        ours, others = (trial(plan, name, 0).config for name in ("mae", "simclr"))
        assert ours.views == (config.ViewConfig(crop_scale=others.views[0].crop_scale, flip=0.5, **COLOUR),)
        assert dataclasses.replace(ours, views=others.views, method=others.method) == others

    @pytest.mark.parametrize(
        ("recipe", "method"),
        cross(sorted(set(list_recipes()) - {"imagenet"}), list_methods(), row="demo", column="byol"),
    )
    def test_a_run_is_what_pretrain_would_do(self, recipe: str, method: str) -> None:
        data = None if options_of(recipe).data.source else "photos"
        both = [complete_options(find_method(name), {}) for name in (method, options_of(recipe).method.name)]
        own = ("batch_size=64", *(["method.hidden_dim=48"] if all("hidden_dim" in each for each in both) else []))
        (_, job) = runs(make_plan(*own, recipe=recipe, data=data), method, {RATE: 0.015})
        expected = configure(recipe, data, (*own, f"{RATE}=0.015", "epochs=8", "seed=1"), method=method)
        assert job.config == expected

    def test_the_settings_of_a_variant_arrive_as_they_are(self) -> None:
        plan = make_plan()
        for method in list_methods():
            for variant in find_method(method).variants:
                settings = {f"method.{key}": value for key, value in variant.items()}
                found = runs(plan, method, settings)[0].config.method.options
                assert {key: found[key] for key in variant} == dict(variant)

    def test_the_baselines_are_a_job_of_their_own(self) -> None:
        job = baselines(make_plan())
        assert (job.stage, job.folder, job.label) == (
            "baselines", Path("baselines"), "raw pixels and untrained network",
        )  # fmt: skip

    def test_files_are_called_by_their_stem(self, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(OWN)
        path = str(tmp_path / "own.py")
        job = runs(make_plan(methods=("simsiam", path)), path, {})[1]
        assert job.folder == Path("runs/own-8-epochs/seed-1") and job.label == "own, 8 epochs, seed 1"
        assert job.config.method.name == path
        (once,) = runs(make_plan(methods=("simsiam", path), budget=1), path, {})[:1]
        assert once.label == "own, 1 epoch, seed 0"


def options_of(recipe: str) -> config.RunConfig:
    """A recipe as it stands."""
    from matrix_ssl.config.recipes import find_recipe

    return find_recipe(recipe)


class TestParts:
    """The digits have a test part; folders of images do not."""

    def test_of_a_set_without_a_test_part_no_test_image_is_learned_from(self, tmp_path: Path) -> None:
        for name, count in (("ant", 20), ("bee", 31)):
            make_images(tmp_path / name, count)
        data = config.DataConfig(source=str(tmp_path))
        learn, judge = jobs.open_training_part(data, data_root=None), jobs.open_test_part(data, data_root=None)
        fitted, chosen_on = jobs.hold_out(learn)
        places_ = [{part.where(i) for i in range(len(part))} for part in (fitted, chosen_on, judge)]
        assert [len(p) for p in places_] == [33, 8, 10]  # of every class a fifth, then a fifth of the rest
        assert len(set.union(*places_)) == 51
        assert sorted(judge.labels.tolist()) == [0] * 4 + [1] * 6
        smaller = jobs.open_training_part(dataclasses.replace(data, subset=12), data_root=None)
        assert {smaller.where(i) for i in range(12)} < places_[0] | places_[1] and len(smaller) == 12

    def test_a_test_part_is_taken_where_there_is_one(self) -> None:
        data = config.DataConfig(source="digits")
        learn, judge = jobs.open_training_part(data, data_root=None), jobs.open_test_part(data, data_root=None)
        expected = open_source("digits", split="test", data_root=None)
        assert len(learn) == 1437 and torch.equal(judge.images, expected.images)

    def test_other_images_in_the_same_folder_are_refused(self, tmp_path: Path) -> None:
        comparison = ComparisonRun(make_plan(), tmp_path, command="")
        (tmp_path / "baselines").mkdir()
        (tmp_path / "baselines" / "result.json").write_text("{}")  # something that was measured on them
        for found, message in ((1437, None), (1400, "train: 1400 -> 1437")):
            (tmp_path / "compare.json").write_text(f'{{"data": {{"train": {found}, "test": 360, "classes": 10}}}}')
            if message is None:
                comparison.open_data(data_root=None, download=False)
                continue
            with pytest.raises(RunFolderError) as caught:
                comparison.open_data(data_root=None, download=False)
            assert message in str(caught.value) and "--out" in str(caught.value)

    def test_what_no_method_could_learn_from_is_known_at_the_start(self) -> None:
        for setting, message in (
            ("batch_size=1300", "batch_size=1300 is larger than the 1150 images"),  # a trial has four fifths
            ("network.encoder=alexnet", "does not accept images of 8 pixels"),
        ):
            comparison = ComparisonRun(make_plan(setting), Path("absent"), command="")
            with pytest.raises(ConfigError, match=message):
                comparison.open_data(data_root=None, download=False)


class TestOptionsOfMethods:
    METHODS = ("simclr", "barlow_twins", "simsiam")

    def test_each_is_for_the_methods_that_have_it(self) -> None:
        shared, texts = divide(
            ["batch_size=64", "method.temperature=0.3", " method.hidden_dim = 48", "method.name=mec"]
        )
        assert shared == ["batch_size=64", "method.name=mec"]
        values = read_options(texts, self.METHODS)
        assert values == {"temperature": 0.3, "hidden_dim": 48}
        base, others = with_options(demo(), values)  # Matrix-SSL has the width alone
        assert (base.method.options["hidden_dim"], others) == (48, {"temperature": 0.3})
        plan = dataclasses.replace(make_plan(methods=self.METHODS, reference="simclr"), base=base, options=others)
        options = {name: runs(plan, name, {})[0].config.method.options for name in self.METHODS}
        assert [options[name]["hidden_dim"] for name in self.METHODS] == [48, 48, 48]
        assert options["simclr"]["temperature"] == trial(plan, "simclr", 0).config.method.options["temperature"]
        assert options["simclr"]["temperature"] == 0.3 and "temperature" not in options["simsiam"]
        assert list(lacking(values, self.METHODS)) == [
            "method.temperature=0.3 is for simclr: the other methods have no such option."
        ]

    def test_a_plan_without_them_is_that_of_earlier_versions(self) -> None:
        plan = make_plan()
        assert "options" not in plan.describe()
        assert dataclasses.replace(plan, options={"temperature": 0.3}).describe()["options"] == {"temperature": 0.3}

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("method.temprature=1", "none of the methods has this option. Did you mean 'temperature'?"),
            ("method.order=2", "Unknown setting 'method.order': none of the methods has this option."),
            ("method.temperature=warm", "method.temperature=warm: expected a finite number above 0."),
        ],
    )
    def test_one_that_no_method_takes_is_refused(self, setting: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            read_options(divide([setting])[1], self.METHODS)
        assert message in str(caught.value)


def keep(out: Path, name: str = "result.json") -> None:
    """Writes a file of a training into the folder of a comparison, which thereby has something to lose."""
    path = out / "runs" / "simsiam-8-epochs" / "seed-0" / name
    path.parent.mkdir(parents=True)
    path.touch()


class TestFolder:
    @pytest.mark.parametrize("kept", ["result.json", "encoder.safetensors", "checkpoints/step-000000100.safetensors"])
    def test_a_plan_gives_way_until_a_training_has_kept_something(self, tmp_path: Path, kept: str) -> None:
        """Logs of trainings that failed, their weights at the start, and the baselines are not worth a new folder."""
        plans = [make_plan("batch_size=32"), make_plan("batch_size=64", seeds=1, methods=("matrix_ssl", "byol"))]
        first, second = (ComparisonRun(plan, tmp_path, command="") for plan in plans)
        first.claim()
        for name in ("runs/simsiam-8-epochs/seed-1/output.txt", "runs/simsiam-8-epochs/seed-1/metrics.jsonl",
                     "runs/simsiam-8-epochs/seed-1/checkpoints/step-000000000.safetensors", "baselines/result.json",
                     "compare.json"):  # fmt: skip
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        second.check()
        second.claim()
        assert read_json(tmp_path / "plan.json") == json.loads(json.dumps(plans[1].describe()))
        keep(tmp_path, kept)
        second.claim()
        for refused in (first.check, first.claim):
            with pytest.raises(RunFolderError, match=r"compares byol as well"):
                refused()
        with pytest.raises(RunFolderError, match=r"started with other settings \(base\.batch_size: 64 -> 32\)"):
            ComparisonRun(make_plan("batch_size=32", seeds=1, methods=plans[1].methods), tmp_path, command="").claim()

    def test_a_plan_comes_back_from_its_file(self, tmp_path: Path) -> None:
        plan = make_plan("views.0.crop_scale=0.5,1.0", tuning_settings=("network.width=16",))
        ComparisonRun(plan, tmp_path, command="").claim()
        keep(tmp_path)
        ComparisonRun(plan, tmp_path, command="another spelling").claim()
        with pytest.raises(RunFolderError) as caught:
            ComparisonRun(dataclasses.replace(plan, seeds=1, trials=2), tmp_path, command="").claim()
        assert "(seeds: 2 -> 1; trials: 4 -> 2)" in str(caught.value)

    def test_it_may_get_more_methods_and_seeds_and_nothing_else(self, tmp_path: Path) -> None:
        plan = make_plan(methods=("simsiam", "byol"), reference="simsiam", seeds=2)
        larger = dataclasses.replace(plan, methods=("byol", "mec", "simsiam"), seeds=3)
        ComparisonRun(plan, tmp_path, command="").claim()
        keep(tmp_path)
        with pytest.raises(RunFolderError, match="trials: 4 -> 2"):
            ComparisonRun(dataclasses.replace(larger, trials=2), tmp_path, command="").claim()
        ComparisonRun(larger, tmp_path, command="").check()
        assert read_json(tmp_path / "plan.json") == json.loads(json.dumps(plan.describe()))  # it changes nothing
        ComparisonRun(larger, tmp_path, command="").claim()
        assert read_json(tmp_path / "plan.json") == json.loads(json.dumps(larger.describe()))
        with pytest.raises(RunFolderError) as caught:
            ComparisonRun(dataclasses.replace(larger, methods=("simsiam", "moco_v2")), tmp_path, command="").check()
        assert str(caught.value) == (
            f"{tmp_path} compares byol, mec as well: name all of its methods and those to add in --methods, or choose "
            "a different folder with --out."
        )

    def test_without_a_name_the_reference_stays(self, tmp_path: Path) -> None:
        """The recipe's method, added later, does not become the one that the others are compared with."""
        plan, names = make_plan(methods=("simsiam", "byol"), reference="simsiam"), ("byol", "mec", "simsiam")
        assert _reference(names, None, "mec", plan=tmp_path / "plan.json") == "mec"
        assert _reference(names[:1], None, "mec", plan=tmp_path / "plan.json") == "byol"
        ComparisonRun(plan, tmp_path, command="").claim()
        assert _reference(names, None, "mec", plan=tmp_path / "plan.json") == "simsiam"
        assert _reference(names, None, "mec", plan=None) == "mec"  # --fresh
        assert _reference(names, "byol", "mec", plan=tmp_path / "plan.json") == "byol"
        own = str(tmp_path / "own.py")
        write_json(tmp_path / "plan.json", plan.describe() | {"reference": own})
        assert _reference(("byol", own), None, "byol", plan=tmp_path / "plan.json") == own

    def test_another_order_of_the_methods_is_the_same_comparison(self, tmp_path: Path) -> None:
        plan = make_plan(methods=("simsiam", "byol"), reference="simsiam")
        ComparisonRun(plan, tmp_path, command="").claim()
        keep(tmp_path)
        ComparisonRun(dataclasses.replace(plan, methods=("byol", "simsiam")), tmp_path, command="").claim()
        assert read_json(tmp_path / "plan.json")["methods"] == ["byol", "simsiam"]

    @pytest.mark.parametrize("damage", [{"methods": 5}, {"methods": [None]}, {"seeds": "2"}, {"seeds": True}])
    def test_a_damaged_plan_does_not_grow(self, tmp_path: Path, damage: dict[str, Any]) -> None:
        plan = make_plan()
        write_json(tmp_path / "plan.json", plan.describe() | damage)
        keep(tmp_path)
        with pytest.raises(RunFolderError, match="was started with other settings"):
            ComparisonRun(dataclasses.replace(plan, seeds=9), tmp_path, command="").claim()

    def test_settings_that_decide_nothing_may_change(self, tmp_path: Path) -> None:
        ComparisonRun(make_plan("log_every=3"), tmp_path, command="").claim()
        keep(tmp_path)
        ComparisonRun(make_plan("log_every=4", "data.workers=1"), tmp_path, command="").claim()

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("network.widht=8", "Unknown setting 'network.widht'. Did you mean 'network.width'?"),
            ("method.ridge=0.2", "Unknown setting 'method.ridge'"),  # SimSiam has none
        ],
    )
    def test_settings_of_trials_that_do_not_fit_are_known_at_the_start(self, setting: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            ComparisonRun(make_plan(tuning_settings=(setting,)), Path("absent"), command="")
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("recipe", "data", "expected"),
        [
            ("demo", None, "runs/compare-demo"),
            ("demo", "digits", "runs/compare-demo-digits"),
            ("images", "my photos/", "runs/compare-images-my photos"),
        ],
    )
    def test_the_default_is_named_after_recipe_and_data(
        self, monkeypatch: pytest.MonkeyPatch, recipe: str, data: str | None, expected: str
    ) -> None:
        class Reached(Exception):
            pass

        def stop(self: ComparisonRun, plan: Plan, out: Path, *, command: str, public: object) -> None:
            assert plan.budget == plan.tuning_budget == plan.base.epochs and plan.methods == tuple(
                name for name in list_methods() if not find_method(name).needs_tokens
            )
            raise Reached(str(out))

        monkeypatch.setattr(ComparisonRun, "__init__", stop)
        words = [recipe, "--device", "cpu", *(["--data", data] if data else [])]
        with pytest.raises(Reached) as caught:
            compare.main(words, standalone_mode=False)
        assert str(caught.value) == expected


def test_a_plan_is_plain_values() -> None:
    values = dataclasses.asdict(make_plan())
    assert config.from_dict(values["base"]) == make_plan().base and values["trials"] == 4


def test_statistics_that_are_not_given_are_measured_once_for_all_runs():
    images = mean_and_deviation(jobs.open_training_part(demo().data, data_root=None), workers=0)
    said: list[str] = []
    base = dataclasses.replace(demo(), data=dataclasses.replace(demo().data, mean=(), std=()))
    measured = jobs.with_measured(base, data_root=None, download=False, say=said.append)
    assert (measured.data.mean, measured.data.std) == (images.mean, images.std)
    assert len(said) == 1 and said[0].startswith(f"Measured on {images.images} images: mean ")
    assert dataclasses.replace(measured, data=base.data) == base
    plan = dataclasses.replace(make_plan(), base=measured)
    every = [plan.base, *(job.config for method in plan.methods for job in runs(plan, method, {}))]
    assert {run.data.mean for run in every} == {images.mean}
    assert plan.describe()["base"]["data"]["mean"] == images.mean


def test_all_runs_of_a_plan_have_the_precision_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "bfloat16_instructions", lambda device: "AMX")
    cpu, path = torch.device("cpu"), tmp_path / "plan.json"
    base = jobs.with_precision(demo(), cpu, plan=path, run="base")
    plan = dataclasses.replace(make_plan(), base=base)
    every = [plan.base, *(job.config for method in plan.methods for job in runs(plan, method, {}))]
    assert {run.precision for run in every} == {"bfloat16"}
    write_json(path, plan.describe())
    monkeypatch.setattr(devices, "bfloat16_instructions", lambda device: "")
    assert jobs.with_precision(demo(), cpu, plan=path, run="base").precision == "bfloat16"
    assert jobs.with_precision(demo(), cpu, plan=None, run="base").precision == "float32"
    write_json(path, make_plan().describe())  # of an earlier version
    monkeypatch.setattr(devices, "bfloat16_instructions", lambda device: "AMX")
    assert jobs.with_precision(demo(), cpu, plan=path, run="base") == demo()
    write_json(path, {"base": "damaged"})  # claiming the folder refuses it
    assert jobs.with_precision(demo(), cpu, plan=path, run="base").precision == "bfloat16"


@pytest.mark.parametrize("recipe", ["demo", "cifar10"])
def test_statistics_of_a_recipe_stay_as_they_are(recipe):
    base = outline(recipe, "nowhere", ())
    assert jobs.with_measured(base, data_root=None, download=False, say=pytest.fail) is base
