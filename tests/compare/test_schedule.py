"""Where the jobs of a comparison run, and what counts as their result; the jobs here do no work."""

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from matrix_ssl import config as configuration
from matrix_ssl.compare.job import identify
from matrix_ssl.compare.plan import Job, Plan, baselines, runs
from matrix_ssl.compare.schedule import Place, places, read_result, run_jobs
from matrix_ssl.errors import RunFolderError
from matrix_ssl.runs import processes
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.training.configure import outline

HERE = [Place("cpu", None, 1)]


class TestPlaces:
    @pytest.mark.parametrize(
        ("given", "gpus", "jobs_", "expected"),
        [
            (None, 4, 0, ["0", "1", "2", "3"]),
            (None, 2, 5, ["0", "1", "0", "1", "0"]),
            (None, 4, 1, ["0"]),
            ("2,5", 2, 0, ["2", "5"]),
            ("2, 5", 2, 3, ["2", "5", "2"]),
            ("1,7,3", 1, 0, ["1"]),  # there is no seventh, and CUDA looks no further
            ("GPU-8932f937,GPU-1c2b", 2, 0, ["GPU-8932f937", "GPU-1c2b"]),
        ],
    )
    def test_every_gpu_is_one(
        self, monkeypatch: pytest.MonkeyPatch, given: str | None, gpus: int, jobs_: int, expected: list[str]
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        found = places("cuda", jobs=jobs_)
        assert [(place.device, place.visible, place.threads) for place in found] == [("cuda", n, 0) for n in expected]
        assert all(a != b for a, b in itertools.combinations(found, 2))  # two on one GPU are two places

    @pytest.mark.parametrize(
        ("cores", "jobs_", "expected"), [(8, 0, [1] * 8), (8, 1, [8]), (8, 3, [2] * 3), (2, 5, [1] * 5), (1, 0, [1])]
    )
    def test_cores_are_shared(
        self, monkeypatch: pytest.MonkeyPatch, cores: int, jobs_: int, expected: list[int]
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        found = places("cpu", jobs=jobs_)
        assert [(p.device, p.visible, p.threads, p.workers) for p in found] == [("cpu", None, n, n) for n in expected]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert [p.workers for p in places("cuda", jobs=0)] == [max(1, cores // 2)] * 2

    def test_an_apple_gpu_is_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        assert [(p.device, p.threads) for p in places("mps", jobs=0)] == [("mps", 8)]


def make_plan(*settings: str, epochs: int = 2) -> Plan:
    """A plan of one method and two seeds."""
    base = dataclasses.replace(outline("demo", None, settings), seed=0)
    return Plan(
        base=base, methods=("simsiam",), reference="simsiam", seeds=2, budget=epochs,
        rivals_budget=0, trials=1, tuning_budget=1, tuning_settings=(), measure="linear",
    )  # fmt: skip


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Python code that is executed instead of a job, whose folder is ``sys.argv[1]``; what was started is kept."""
    code = ["raise SystemExit(3)"]

    def start(command: list[str], **rest: object) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", code[0], *command[3:]], **rest)

    monkeypatch.setattr(processes, "subprocess", types.SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))
    return code


def run(out: Path, jobs: list[Job], where: list[Place] = HERE) -> dict[str, dict]:
    """Runs jobs; their results by label."""
    found: dict[str, dict] = {}
    run_jobs(
        out,
        lambda: [job for job in jobs if job.label not in found],
        where,
        data_root=None,
        ended=lambda job, result: found.__setitem__(job.label, result),
        running=lambda _: None,
    )
    return found


def old_job(out: Path, job: Job, **result: object) -> Path:
    """A folder with a job and a result that lie there from before."""
    folder = out / job.folder
    folder.mkdir(parents=True)
    write_json(folder / "job.json", {"config": configuration.to_dict(job.config)})
    write_json(folder / "result.json", result)
    return folder


WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'result.json').write_text('{\"new\": 1}')"


def test_a_result_counts_for_its_own_settings_only(tmp_path: Path) -> None:
    job = runs(make_plan(), "simsiam", {})[0]
    assert read_result(tmp_path, job) is None
    old_job(tmp_path, job, accuracy=1)
    assert read_result(tmp_path, job) == {"accuracy": 1}
    assert read_result(tmp_path, runs(make_plan("log_every=3"), "simsiam", {})[0]) == {"accuracy": 1}
    assert read_result(tmp_path, runs(make_plan("batch_size=64"), "simsiam", {})[0]) is None


def test_a_result_of_a_different_job_is_noticed(tmp_path: Path) -> None:
    first, second = runs(make_plan(), "simsiam", {})[:2]
    for job in (first, second):
        folder = old_job(tmp_path, job)
        write_json(folder / "result.json", {"accuracy": 1, "job": identify(job.stage, job.method, job.config)})
        assert read_result(tmp_path, job) == {"accuracy": 1}
    shutil.copy(tmp_path / first.folder / "result.json", tmp_path / second.folder)
    with pytest.raises(RunFolderError, match=r"result\.json belongs to a different job: put its own file back"):
        read_result(tmp_path, second)


def test_a_public_encoder_may_be_named_by_another_path(tmp_path: Path) -> None:
    """Its folder is named after its digest, so it is the same encoder."""
    config = baselines(make_plan()).config
    job = Job("public", "runs/x", 0, 0, {"name": "x, 8 px", "sha256": "a" * 64}, config)
    folder = old_job(tmp_path, job)
    write_json(folder / "job.json", read_json(folder / "job.json") | {"method": "runs/x"})
    write_json(folder / "result.json", {"accuracy": 1, "job": identify("public", "runs/x", config)})
    for path in ("runs/x", "./runs/x", "/home/me/runs/x"):
        assert read_result(tmp_path, dataclasses.replace(job, method=path)) == {"accuracy": 1}
    write_json(folder / "result.json", {"accuracy": 1, "job": identify("public", "runs/y", config)})
    with pytest.raises(RunFolderError, match="belongs to a different job"):
        read_result(tmp_path, job)


def test_a_result_that_nothing_connects_with_its_job_is_refused(tmp_path: Path) -> None:
    """An earlier version marked no results, but a file ``job.json`` is beside each of them."""
    job = runs(make_plan(), "simsiam", {})[0]
    folder = old_job(tmp_path, job, accuracy=1)
    assert read_result(tmp_path, job) == {"accuracy": 1}
    (folder / "job.json").unlink()
    with pytest.raises(RunFolderError, match=r"result\.json does not say which job it is the result of: remove it to"):
        read_result(tmp_path, job)
    write_json(folder / "result.json", {"accuracy": 1, "job": identify(job.stage, job.method, job.config)})
    assert read_result(tmp_path, job) == {"accuracy": 1}


def test_a_job_of_another_version_is_no_result(tmp_path: Path) -> None:
    """Its configuration has a setting that does not exist."""
    job = runs(make_plan(), "simsiam", {})[0]
    folder = old_job(tmp_path, job, accuracy=1)
    write_json(folder / "job.json", {"config": {**configuration.to_dict(job.config), "forgotten": 1}})
    assert read_result(tmp_path, job) is None


def test_a_run_with_other_settings_is_kept_aside(tmp_path: Path, instead: list[str]) -> None:
    old, new = runs(make_plan(), "simsiam", {})[0], runs(make_plan("batch_size=64"), "simsiam", {})[0]
    folder = old_job(tmp_path, old, accuracy=1)
    write_json(folder / "config.json", configuration.to_dict(old.config))
    instead[0] = WRITE
    assert run(tmp_path, [new]) == {new.label: {"new": 1}}
    assert read_json(folder.with_name("seed-0.1") / "result.json") == {"accuracy": 1}
    assert sorted(path.name for path in folder.iterdir()) == ["job.json", "output.txt", "result.json"]


def test_baselines_of_other_settings_do_not_outlive_a_failure(tmp_path: Path, instead: list[str]) -> None:
    """Their folder is no run that could be kept aside."""
    old_job(tmp_path, baselines(make_plan()), accuracy=1)
    new = baselines(make_plan("batch_size=64"))
    assert list(run(tmp_path, [new])[new.label]) == ["error"]
    assert read_result(tmp_path, new) is None
    instead[0] = WRITE
    assert run(tmp_path, [new]) == {new.label: {"new": 1}}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", "The process ended with exit code 3: no output"),
        ("print('first'); print('last'); raise SystemExit(1)", "The process ended with exit code 1: last"),
        ("1 / 0", "The process ended with exit code 1: ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", "The process ended with signal 9: no output"),
        ("pass", "The process ended with exit code 0: no output"),
    ],
)
def test_a_process_without_a_result_has_failed(tmp_path: Path, instead: list[str], code: str, message: str) -> None:
    instead[0] = code
    first, second = runs(make_plan(), "simsiam", {})
    found = run(tmp_path, [first, second])  # one that has failed is not repeated, and the other gets its turn
    output = tmp_path / first.folder / "output.txt"
    assert found[first.label] == {"error": f"{message} (see {output})"} and found.keys() == {first.label, second.label}


def test_places_and_folders_are_told_to_the_process(tmp_path: Path, instead: list[str]) -> None:
    instead[0] = (
        "import json, os, pathlib, sys\n"
        "keys = ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS')\n"
        "values = {key: os.environ.get(key) for key in keys} | {'parent': int(sys.argv[2]), 'group': os.getpgid(0)}\n"
        "pathlib.Path(sys.argv[1], 'result.json').write_text(json.dumps(values | {'me': os.getpid()}))\n"
    )
    (job, _) = runs(make_plan(), "simsiam", {})
    found = run(tmp_path, [job], [Place("cpu", "5", 3)])[job.label]
    assert found.items() >= {"CUDA_VISIBLE_DEVICES": "5", "OMP_NUM_THREADS": "3", "parent": os.getpid()}.items()
    assert found["group"] == found["me"]  # Ctrl-C reaches the comparison alone
    written = read_json(tmp_path / job.folder / "job.json")
    assert (written["stage"], written["device"], written["threads"]) == ("run", "cpu", 3)
    assert configuration.from_dict(written["config"]) == job.config


@pytest.mark.parametrize(("setting", "expected"), [("data.workers=-1", 2), ("data.workers=5", 5)])
def test_jobs_share_the_workers_that_decode_images(
    tmp_path: Path, instead: list[str], setting: str, expected: int
) -> None:
    """Else as many jobs as there are cores would each start a process for every core."""
    instead[0] = WRITE
    job = runs(make_plan(setting), "simsiam", {})[0]
    assert run(tmp_path, [job], [Place("cpu", None, 1, 2)]) == {job.label: {"new": 1}}
    assert read_json(tmp_path / job.folder / "job.json")["config"]["data"]["workers"] == expected


# a job that waits until as many have begun as ``TOGETHER`` says, and reports how many run then
TOGETHER = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "begun").touch()
end = time.monotonic() + 60
begun = lambda: [path.parent for path in folder.parent.glob("*/begun")]
while len(begun()) < int(os.environ["TOGETHER"]) and time.monotonic() < end:
    time.sleep(0.01)
running = [path for path in begun() if not (path / "result.json").exists()]
(folder / "result.json").write_text(json.dumps({"running": len(running)}))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_as_many_run_side_by_side_as_there_are_places(
    tmp_path: Path, instead: list[str], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    instead[0] = TOGETHER
    monkeypatch.setenv("TOGETHER", str(count))
    found = run(tmp_path, runs(make_plan(), "simsiam", {}), HERE * count)
    assert len(found) == 2 and max(result["running"] for result in found.values()) == count


@pytest.mark.slow  # test_peak_memory_counts_this_process_alone shows it without PyTorch
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel says nothing of the parent")
def test_the_memory_of_a_job_is_its_own() -> None:
    """Linux counts what the process that starts a program has taken as memory of the program."""
    child = "import resource, torch; from matrix_ssl.compare.job import _peak_memory\n" + (
        "print(_peak_memory(torch.device('cpu')), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    parent = (
        "import subprocess, sys; taken = bytearray(1200 * 2**20); subprocess.run([sys.executable, '-c', sys.argv[1]])"
    )
    ended = subprocess.run([sys.executable, "-c", parent, child], capture_output=True, text=True, check=True)
    own, all_that_linux_counts = map(float, ended.stdout.split())
    assert 50 < own < 1000 and all_that_linux_counts > 1200
