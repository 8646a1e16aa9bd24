"""One method several times, each with its own values of options: ``simsiam,simsiam:hidden_dim=8``."""

from pathlib import Path

import pytest

from matrix_ssl.cli.compare import _reference
from matrix_ssl.compare.comparison import ComparisonRun
from matrix_ssl.compare.options import lacking, read_options
from matrix_ssl.compare.plan import choose_methods, most_trials, next_trial, runs
from matrix_ssl.errors import ConfigError
from matrix_ssl.methods import find_method
from matrix_ssl.runs.files import read_json, write_text
from tests.compare.test_own_methods import OWN
from tests.compare.test_plan import demo, make_plan
from tests.support.comparisons import compare, fail, moments, results, words
from tests.support.runs import run

SHARP = "simclr:temperature=0.5"


class TestChoice:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("simclr,simclr:temperature=.50", ("simclr", SHARP)),
            (f"{SHARP},simclr:temperature=5e-1", (SHARP,)),  # the same value
            ("simclr:temperature=1:hidden_dim=64", ("simclr:hidden_dim=64:temperature=1.0",)),
            ("matrix_ssl:predictor=false", ("matrix_ssl:predictor=false",)),
        ],
    )
    def test_values_are_written_as_their_types_write_them(self, text: str, names: tuple[str, ...]) -> None:
        assert choose_methods(text, demo()) == names

    def test_a_file_may_have_values_too(self, tmp_path: Path) -> None:
        write_text(tmp_path / "own.py", OWN)
        path = tmp_path / "own.py"
        chosen = choose_methods(f"{path},{path}:weight=2:lucky=false", demo())
        assert chosen == (str(path), f"{path}:weight=2.0:lucky=false")
        plan = make_plan(methods=chosen, reference=chosen[0])
        assert plan.describe()["methods"] == ("own.py", "own.py:weight=2.0:lucky=false")
        jobs = [runs(plan, method, {})[0] for method in chosen]
        assert [str(job.folder) for job in jobs] == [
            "runs/own-8-epochs/seed-0",
            "runs/own-weight=2.0-lucky=false-8-epochs/seed-0",
        ]
        assert jobs[1].label == "own:weight=2.0:lucky=false, 8 epochs, seed 0"
        assert [job.config.method.name for job in jobs] == [str(path)] * 2
        assert [job.config.method.options["weight"] for job in jobs] == [1.0, 2.0]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("simclr:temprature=0.5", "Unknown setting 'method.temprature'. Did you mean 'temperature'?"),
            ("simclr:temperature=warm", "method.temperature=warm: expected a finite number above 0."),
            ("simclr:temperature=0", "method.temperature=0: expected a finite number above 0."),
            ("simclr:temperature", "--methods 'simclr:temperature': write an option as simclr:OPTION=VALUE."),
            (
                "simclr:temperature=0.5:temperature=0.2",
                "'simclr:temperature=0.5:temperature=0.2' gives temperature "
                "twice: remove one, or name two methods to compare both.",
            ),
            ("mec,simclr:temperature=0.5:hidden_dim=64:temperature=0.5", "gives temperature twice"),
            ("simclr:0.5", "--methods 'simclr:0.5': write an option as simclr:OPTION=VALUE."),
            ("simcrl:temperature=0.5", "method.name='simcrl' is not a method. Did you mean 'simclr'?"),
        ],
    )
    def test_mistakes_are_named(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            choose_methods(text, demo())
        assert message in str(caught.value)

    def test_one_of_them_can_be_the_reference(self) -> None:
        names = ("simclr", SHARP)
        assert _reference(names, SHARP, "matrix_ssl", plan=None) == SHARP
        assert _reference(names, None, "matrix_ssl", plan=None) == "simclr"
        with pytest.raises(ConfigError, match=r"--reference 'simclr:temperature=0.4' is not among the methods. Did"):
            _reference(names, "simclr:temperature=0.4", "matrix_ssl", plan=None)


def test_other_commands_name_the_setting() -> None:
    with pytest.raises(ConfigError) as caught:
        find_method("simclr:temperature=0.5:hidden_dim=64")
    assert str(caught.value) == (
        "method.name='simclr:temperature=0.5:hidden_dim=64': only a comparison names options like this; use --set "
        "method.temperature=0.5 --set method.hidden_dim=64."
    )


class TestPlan:
    PLAN = make_plan(methods=("simclr", SHARP), reference="simclr")

    def test_only_the_value_differs(self) -> None:
        one, other = (runs(self.PLAN, method, {})[0].config for method in self.PLAN.methods)
        assert {k: v for k, v in other.method.options.items() if one.method.options[k] != v} == {"temperature": 0.5}
        assert one.method.name == other.method.name == "simclr"

    def test_trials_keep_the_value(self) -> None:
        """The variants of SimCLR are temperatures; that of each trial is the value, at other rates."""
        assert most_trials(self.PLAN, "simclr") - most_trials(self.PLAN, SHARP) == 2
        earlier: list[dict[str, object]] = []
        for _ in range(most_trials(self.PLAN, SHARP)):
            job = next_trial(self.PLAN, SHARP, earlier, 0)
            assert job.config.method.options["temperature"] == 0.5
            assert job.settings not in earlier and job.folder.parts[1] == "simclr-temperature=0.5"
            earlier.append(job.settings)

    def test_too_many_trials_are_refused(self) -> None:
        most = most_trials(self.PLAN, SHARP)
        plan = make_plan(methods=("simclr", SHARP), reference="simclr", trials=most + 1)
        with pytest.raises(ConfigError, match=rf"^--trials {most + 1}: '{SHARP}' has {most} different ones\.$"):
            ComparisonRun(plan, Path("absent"), command="")

    def test_it_goes_before_the_value_of_all(self) -> None:
        names = ("simclr", SHARP, "vicreg")
        values = read_options({"temperature": "0.3"}, names)
        plan = make_plan(methods=names, reference="simclr", options=values)
        assert [runs(plan, name, {})[0].config.method.options["temperature"] for name in names[:2]] == [0.3, 0.5]
        assert list(lacking(values, names)) == [
            "method.temperature=0.3 is for simclr: the other methods have no such option, or a value of their own."
        ]
        with pytest.raises(ConfigError) as caught:
            read_options({"temperature": "0.3"}, (SHARP, "vicreg"))
        assert str(caught.value) == (
            "--set method.temperature: every method with this option has a value of its own; remove it."
        )


def test_an_ablation_from_the_command_to_the_table(tmp_path: Path) -> None:
    """It starts as a comparison of one method, resumes, and may not lose a row."""
    options = ("--trials", "1", "--budget", "1", "--seeds", "2")
    alone = compare(tmp_path, words(*options, methods="simclr"))
    assert alone.err.splitlines()[0] == "1 method, 3 jobs (0 done), 2 at a time on cpu: c"
    before = moments(tmp_path)
    ended = compare(tmp_path, words(*options, methods=f"simclr,{SHARP}"))
    assert ended.err.splitlines()[0] == "2 methods, 5 jobs (3 done), 2 at a time on cpu: c"
    assert moments(tmp_path).items() > before.items()
    found = results(tmp_path)
    assert found["methods"] == ["simclr", SHARP] and found["reference"] == "simclr"
    settings = [(row["method"], row["seed"], row["settings"]["method.temperature"]) for row in found["rows"]]
    assert settings == [("simclr", 0, 0.1), ("simclr", 1, 0.1), (SHARP, 0, 0.5), (SHARP, 1, 0.5)]
    folder = tmp_path / "c" / "runs" / "simclr-temperature=0.5-1-epochs" / "seed-0"
    assert read_json(folder / "config.json")["method"]["options"]["temperature"] == 0.5
    assert "simclr \n temperature=0.5" in "\n".join(line[:17].rstrip() + " " for line in ended.out.splitlines())
    assert "simclr, temperature=0.5" in (tmp_path / "c" / "compare.html").read_text()
    (tmp_path / "c" / "compare.html").unlink()
    assert run(tmp_path, ["report", "c"]).code == 0 and (tmp_path / "c" / "compare.html").is_file()
    assert fail(tmp_path, words(*options, methods="simclr"), code=1) == (
        f"c compares {SHARP} as well: name all of its methods and those to add in --methods, or choose a "
        "different folder with --out."
    )
