"""Comparisons that are killed, interrupted, misused or fed broken methods: nothing is lost, a sentence says why."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.comparisons import (
    FORKED,
    assert_same,
    at_step,
    compare,
    contents,
    fail,
    job_folders,
    moments,
    results,
    signal_comparison,
    timeless,
    words,
)
from tests.support.runs import PATIENCE, Ended, check_failure, make_images

SMALL = words("--seeds", "2", "--trials", "2", "--budget", "2", "--tuning-budget", "1", methods="simsiam")
TRIAL, RUN = "tuning/simsiam/trial-1", "runs/simsiam-2-epochs/seed-0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    compare(folder, SMALL)
    assert len(job_folders(folder)) == 5
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A folder with a comparison of one's own to break."""
    shutil.copytree(whole / "c", tmp_path / "c")
    return tmp_path


@pytest.fixture
def partly(copy: Path) -> Path:
    """A folder with a comparison of which the job ``RUN`` is still to be done."""
    shutil.rmtree(copy / "c" / RUN)
    return copy


@pytest.fixture
def tuned(copy: Path) -> Path:
    """A folder with a comparison of which the baselines alone are done."""
    for name in ("runs", "tuning"):
        shutil.rmtree(copy / "c" / name)
    return copy


@pytest.mark.parametrize(
    ("job", "label"),
    [pytest.param(TRIAL, "simsiam, trial 1", marks=pytest.mark.slow), (RUN, "simsiam, 2 epochs, seed 0")],
)
def test_a_job_that_was_killed_is_reported_and_done_again(
    request: pytest.FixtureRequest, whole: Path, job: str, label: str
) -> None:
    tmp_path: Path = request.getfixturevalue("partly" if job == RUN else "tuned")
    kill = at_step(job, 2, "os.kill(os.getpid(), signal.SIGKILL)")
    ended = runs.run(tmp_path, SMALL, before=FORKED + kill)
    last = check_failure(ended)
    reason = f"The process ended with signal 9: no output (see c/{job}/output.txt)"
    assert f"of 5: {label}: failed: {reason}" in ended.err
    found, before = results(tmp_path), moments(tmp_path)
    if job == RUN:
        assert last == "1 of 2 runs failed; the page gives the reasons."
        assert [row["seed"] for row in found["rows"] if "error" not in row] == [1]
        assert [row["error"] for row in found["rows"] if "error" in row] == [reason]
        assert "1 of 2 failed" in ended.out and reason in (tmp_path / "c" / "compare.html").read_text()
    else:
        assert last == "1 of 5 jobs failed without a result. Run the same command to retry them."
        assert [row["error"] for row in found["tuning"]["rows"] if "error" in row] == [reason]
    assert len(before) == 4 and f"c/{job}" not in before
    again = compare(tmp_path, SMALL)
    assert again.err.splitlines()[0] == "1 method, 5 jobs (4 done), 2 at a time on cpu: c"
    if job == RUN:
        assert (
            len(again.err.splitlines()) == 2 and {k: v for k, v in moments(tmp_path).items() if k in before} == before
        )
        assert_same(tmp_path, whole)
    else:  # what followed from the trial is done again where its settings are others now
        assert timeless(results(tmp_path)) == timeless(results(whole))


@pytest.mark.parametrize(
    ("number", "job"),
    [
        (signal.SIGINT, TRIAL),
        *(pytest.param(number, RUN, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGUSR1)),
    ],
)
def test_a_signal_stops_all_jobs_after_a_checkpoint(tmp_path: Path, whole: Path, number: int, job: str) -> None:
    ended = runs.run(tmp_path, SMALL, before=FORKED + at_step(job, 1, signal_comparison(number)))
    name = signal.Signals(number).name
    assert check_failure(ended, code=128 + number) == f"Stopped by {name}. Run the same command to resume."
    assert "failed" not in ended.err
    output = (tmp_path / "c" / job / "output.txt").read_text()
    assert f"error: Stopped by {name} after step 2. Run the same command to resume." in output
    assert [path.name for path in (tmp_path / "c" / job / "checkpoints").iterdir()] == ["step-000000002.safetensors"]
    kept = moments(tmp_path)
    assert f"c/{job}" not in kept and (tmp_path / "c" / "compare.html").exists()
    compare(tmp_path, SMALL)
    assert_same(tmp_path, whole)
    assert {path: moment for path, moment in moments(tmp_path).items() if path in kept} == kept


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
@pytest.mark.slow
@pytest.mark.parametrize("job", [TRIAL, RUN])
def test_a_comparison_that_was_killed_leaves_no_job_behind(
    request: pytest.FixtureRequest, whole: Path, job: str
) -> None:
    tmp_path: Path = request.getfixturevalue("partly" if job == RUN else "tuned")
    note = f"open('pid', 'w').write(str(os.getpid())); {signal_comparison(signal.SIGKILL)}"
    ended = runs.run(tmp_path, SMALL, before=FORKED + at_step(job, 1, note))
    assert ended.code == -signal.SIGKILL and "failed" not in ended.err
    wait_for_the_end_of([int((tmp_path / "pid").read_text())])
    assert "error: Stopped by SIGTERM after step 2" in (tmp_path / "c" / job / "output.txt").read_text()
    compare(tmp_path, SMALL)
    assert_same(tmp_path, whole)
    assert not list(tmp_path.rglob("*.tmp"))


def wait_for_the_end_of(pids: list[int], seconds: float = 20.0) -> None:
    """Demands that processes end soon."""
    deadline = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is more than an entry that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


HELD = '''"""SimSiam that waits before its third step for the end of what started it, while there is a file ``hold``."""

import os
import time
from pathlib import Path

from matrix_ssl.methods.simsiam import SimSiam

PARENT = os.getppid()


class Held(SimSiam):
    """SimSiam."""

    def before_step(self, step: int, total_steps: int) -> None:
        """Waits."""
        if step == 2:
            Path("held").touch()
        while step == 2 and Path("hold").exists() and os.getppid() == PARENT:
            time.sleep(0.01)
'''


@pytest.mark.slow  # two starts of Python
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_programs_that_are_started_for_themselves_behave_alike(tmp_path: Path) -> None:
    """The jobs of the other tests are forked; here they are programs: one ends, one when the comparison is killed."""
    (tmp_path / "held.py").write_text(HELD)
    (tmp_path / "hold").touch()
    arguments = words("--seeds", "1", "--trials", "1", "--budget", "1", methods=str(tmp_path / "held.py"))
    command = [sys.executable, "-m", "matrix_ssl", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "err").open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, env=environment)
    run, baselines = tmp_path / "c" / "runs" / "held-1-epochs" / "seed-0", tmp_path / "c" / "baselines"
    deadline = time.monotonic() + PATIENCE
    while not ((tmp_path / "held").exists() and (baselines / "result.json").exists()):
        assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "err").read_text()
        time.sleep(0.01)
    jobs = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert any(is_alive(job) for job in jobs)
    process.kill()
    process.wait()
    wait_for_the_end_of(jobs)
    assert "error: Stopped by SIGTERM after step 3" in (run / "output.txt").read_text()
    (tmp_path / "hold").unlink()
    again = compare(tmp_path, arguments)
    assert again.err.splitlines()[0].startswith("1 method, 2 jobs (1 done)")
    (tmp_path / "other").mkdir()
    compare(tmp_path / "other", arguments)
    name = "c/runs/held-1-epochs/seed-0"
    assert runs.tensors(tmp_path / name) == runs.tensors(tmp_path / "other" / name)
    found, expected = (timeless(results(folder)) for folder in (tmp_path, tmp_path / "other"))
    for values in (*found["baselines"].values(), *expected["baselines"].values()):
        for shots in (1, 5, 10):
            del values[f"low_shot_{shots}"]  # ten draws, two where jobs are forked
    assert found == expected


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_job_whose_comparison_is_gone_does_not_start(copy: Path) -> None:
    """It was killed while its job was starting."""
    (copy / "c" / RUN / "result.json").unlink()
    job = f"import sys; from matrix_ssl.compare import job; sys.argv = ['job', 'c/{RUN}', '1']; job.main()"
    assert runs.run(copy, [], before=job) == Ended(143, "", "")
    assert not (copy / "c" / RUN / "result.json").exists()


def test_a_second_comparison_in_the_folder_is_refused(partly: Path, whole: Path) -> None:
    wait = at_step(RUN, 1, "[time.sleep(0.01) for _ in iter(lambda: not os.path.exists('go'), False)]")
    first = runs.start(partly, SMALL, before=FORKED + wait)
    deadline = time.monotonic() + PATIENCE
    while not (partly / "c" / RUN / "metrics.jsonl").exists():
        assert time.monotonic() < deadline, first.err()
        time.sleep(0.01)
    message = fail(partly, SMALL)
    (partly / "go").touch()
    assert message.startswith("c is being written by another process: wait for it or choose another folder.")
    assert first.wait().code == 0
    assert_same(partly, whole)


def test_other_settings_in_the_folder_are_refused_by_name(copy: Path) -> None:
    before = contents(copy)
    for options, message in (
        (
            ["--set", "batch_size=32"],
            "c was started with other settings (base.batch_size: 64 -> 32): choose another folder, or use --fresh to "
            "start over.",
        ),
        (["--seeds", "1"], "(seeds: 2 -> 1)"),
        (["--set", "method.hidden_dim=64"], "(base.method.options.hidden_dim: 32 -> 64)"),
        (["--methods", "byol,simsiam", "--reference", "byol"], "(reference: 'simsiam' -> 'byol')"),
        (["--methods", "matrix_ssl,byol"], "c compares simsiam as well: name all of its methods and those to add in "),
    ):
        assert message in fail(copy, [*SMALL, *options])
    assert contents(copy) == before


@pytest.mark.parametrize("kind", ["images", "run", "file"])
def test_a_folder_that_is_something_else_is_not_touched(tmp_path: Path, whole: Path, kind: str) -> None:
    if kind == "images":
        make_images(tmp_path / "c", 3)
    elif kind == "run":
        shutil.copytree(whole / "c" / RUN, tmp_path / "c")
    else:
        (tmp_path / "c").write_text("mine")
    before = contents(tmp_path)
    reason = "cannot be a run folder: Not a directory" if kind == "file" else "is not empty and has no plan.json"
    assert reason in fail(tmp_path, SMALL)
    assert contents(tmp_path) == before


MISTAKES = [
    (["demo", "--methods", ""], "--methods '': list at least one method, or use 'all'."),
    (["demo", "--methods", "byol,simsaim"], "'simsaim' is not a method. Did you mean 'simsiam'?"),
    (["demo", "--methods", "broken.py,byol"], "broken.py': SyntaxError: '(' was never closed (broken.py, line 3)"),
    (["demo", "--methods", "raising.py"], "raising.py': line 2: KeyError: 'weight'"),
    (["demo", "--measure", "low_shot_1"], "'low_shot_1' is not one of 'linear', 'knn_1', 'knn_20'."),
    (["demo", "--methods", "byol", "--reference", "bjol"], "--reference 'bjol' is not among the methods. Did you mean"),
    (["demo", "--methods", "simsiam", "--trials", "7"], "--trials 7: 'simsiam' has 6 different ones."),
    (["demo", "--seeds", "0"], "Invalid value for '--seeds'"),
    (["demo", "--tuning-set", "epocs=3"], "Unknown setting 'epocs'. Did you mean 'epochs'?"),
    (["demo", "--set", "batch_size=1400"], "batch_size=1400 is larger than the 1150 images of 'digits'"),
    (["dmeo"], "There is no recipe 'dmeo'. Did you mean 'demo'?"),
    (["demo", "--data", "absent"], "'absent' is not a file or folder here"),
    (["demo", "--data", "two"], "'two' has 3-channel images, but recipe 'demo' is for 1"),
    (["--data", "flat"], "'flat' has no labels to compare by: put each class in a folder of its own, or name a"),
    (["images", "--data", "two"], "batch_size=256 is larger than the 6 images of 'two'"),
    (["demo", "--device", "cuda"], "--device cuda: PyTorch sees no GPU here; use --device cpu."),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(mistake) for mistake, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    make_images(tmp_path / "flat", 5)
    for name in ("ant", "bee"):
        make_images(tmp_path / "two" / name, 5)
    (tmp_path / "broken.py").write_text('"""A method."""\n\nx = (1,\n')
    (tmp_path / "raising.py").write_text('"""A method."""\nweight = {}["weight"]\n')
    before = contents(tmp_path)
    assert message in fail(tmp_path, ["compare", *arguments])
    assert contents(tmp_path) == before and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [["compare"], ["worth", "--from", "random:tiny_resnet"]], ids=["compare", "worth"])
def test_without_a_recipe_it_is_one_for_this_machine(tmp_path: Path, command: list[str]) -> None:
    for name in ("ant", "bee"):
        make_images(tmp_path / "two" / name, 5)
    folder = tmp_path / "runs" / f"{command[0]}-images_small-two"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("Something else.")
    message = f"runs/{folder.name} is not empty and has no plan.json"
    assert message in fail(tmp_path, [*command, "--data", "two", "--device", "cpu"])
