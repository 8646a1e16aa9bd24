"""The job of Slurm in ``examples``, with programs in the place of Slurm's and of matrix-ssl."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import TINY

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="the script needs bash")

# as the real ones: tasks at the same time, with their numbers; the greatest exit code is that of all
SRUN = """
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!); done
greatest=0
for task in "${tasks[@]}"; do wait "$task" || { code=$?; ((code > greatest)) && greatest=$code; }; done
exit $greatest
"""
SCONTROL = """
if [ "$1 $2" = "show hostnames" ]; then printf 'node1\\nnode2\\n'; else echo "$*" >> scontrol.log; fi
"""
RECORD = 'echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*" >> calls.log\n'


def programs(folder: Path, **texts: str) -> Path:
    """A folder of bash programs."""
    folder.mkdir()
    for name, text in texts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/usr/bin/env bash\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def submit(folder: Path, *words: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs the job in a folder, with the programs in ``folder/bin``."""
    environment = {
        **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "41007", "OMP_NUM_THREADS": "1",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": str(processes), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(SCRIPT), *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


@pytest.mark.parametrize(
    "code, is_requeued", [("75", True), ("138", True), ("143", True), ("0", False), ("1", False), ("137", False)]
)
def test_a_job_that_was_stopped_goes_back_into_the_queue(tmp_path: Path, code: str, is_requeued: bool) -> None:
    programs(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL, matrix_ssl=f"{RECORD} exit {code}")
    ended = submit(tmp_path, "--data", "my photos", "--out", "r")
    assert ended.returncode == int(code) and not ended.stderr
    calls = sorted((tmp_path / "calls.log").read_text().splitlines())
    words = "node1:21007 pretrain --data my photos --out r"
    assert calls == [f"0/2 0/2 {words}", f"1/2 1/2 {words}"]
    log = tmp_path / "scontrol.log"
    assert (log.exists() and log.read_text()) == (is_requeued and "requeue 41007\n")


def test_the_queue_is_asked_for_a_signal_before_the_limit() -> None:
    directives = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --signal=USR1@300", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(directives)


@pytest.mark.slow  # three starts of a program
def test_a_real_run_goes_on_in_the_next_job(tmp_path: Path) -> None:
    alone = SRUN.replace("0 1;", "0;")
    programs(
        tmp_path / "bin", srun=alone, scontrol=SCONTROL,
        matrix_ssl=f'unset RANK WORLD_SIZE\nexec {sys.executable} -m matrix_ssl "$@"',
    )  # fmt: skip
    settings = [word for setting in (*TINY, "epochs=1") for word in ("--set", setting)]
    words = ["demo", "--out", "r", "--device", "cpu", "--no-report", *settings]
    ended = submit(tmp_path, *words, "--max-hours", "1e-9", processes=1)
    assert ended.returncode == 75, ended.stderr
    assert (tmp_path / "scontrol.log").read_text() == "requeue 41007\n"
    ended = submit(tmp_path, *words, processes=1)
    assert ended.returncode == 0 and "Resuming after step 1 of 22" in ended.stderr
    assert (tmp_path / "scontrol.log").read_text() == "requeue 41007\n"
