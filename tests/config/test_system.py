"""What differs between operating systems: the calls of Linux, and what takes their place without ``fcntl``."""

import ast
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import matrix_ssl
from matrix_ssl.config import system
from matrix_ssl.data.files.open_files import check_open_files
from matrix_ssl.errors import OpenFilesError
from matrix_ssl.runs.folder import CONFIG, held
from tests.support import runs

ROOT = Path(matrix_ssl.__file__).parent
WITHOUT_POSIX = "import psutil, sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
HOLD = """
from pathlib import Path
from matrix_ssl.errors import RunFolderError
from matrix_ssl.runs.folder import lock
try:
    with lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except RunFolderError as error:
    print(error, flush=True)
"""


@contextmanager
def lock_in_another_process(folder: Path, *, before: str = "import sys\n") -> Iterator[str]:
    """What a process prints that holds the lock of a folder until the block ends."""
    command = [sys.executable, "-c", before + HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline()
        process.communicate()


@pytest.mark.parametrize("before", ["import sys\n", WITHOUT_POSIX], ids=["fcntl", "filelock"])
def test_a_lock_excludes_a_second_process_until_the_first_ends(tmp_path: Path, before: str) -> None:
    with lock_in_another_process(tmp_path, before=before) as first:
        assert first == "held\n"
        with lock_in_another_process(tmp_path, before=before) as second:
            assert second == f"{tmp_path} is being written by another process: wait for it or choose another folder.\n"
    with lock_in_another_process(tmp_path, before=before) as third:
        assert third == "held\n"


def test_a_folder_is_set_aside_with_no_file_open_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows renames no folder that holds an open file; afterwards the new folder is locked."""
    run, held_at_rename = tmp_path / "run", []
    rename = Path.rename

    def look(path: Path, target: Path) -> Path:
        with lock_in_another_process(run) as answer:
            held_at_rename.append(answer != "held\n")
        return rename(path, target)

    run.mkdir()
    (run / CONFIG).write_text("{}")
    monkeypatch.setattr(Path, "rename", look)
    monkeypatch.setattr(system, "MOVES_HELD_FOLDERS", False)
    with held(run, fresh=True, say=lambda text: None):
        assert (tmp_path / "run.1" / CONFIG).exists() and not (run / CONFIG).exists()
        with lock_in_another_process(run) as answer:
            assert "is being written by another process" in answer
    assert held_at_rename == [False]


def test_there_is_no_limit_of_open_files_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert system.open_file_limit() == limit
    with pytest.raises(OpenFilesError, match=f"limit of {limit} open files"):
        check_open_files(limit)
    monkeypatch.setattr(system, "resource", None)
    check_open_files(limit)


def test_a_worker_ignores_ctrl_c_and_outlives_a_signal_to_its_group() -> None:
    code = (
        "import signal, time; from matrix_ssl.config import system; system.outlive_signals(1)\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.raise_signal(number)\n"
        "print('alive', flush=True); time.sleep(20)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("alive\n", -signal.SIGALRM)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_process_ends_with_its_parent(platform: str) -> None:
    """By the kernel, and by a look at the parent where there is no such call."""
    child = (
        f"import sys, time; sys.platform = {platform!r}; from matrix_ssl.config import system\n"
        "system._SECONDS_BETWEEN_LOOKS = 0.05; system.end_with_parent(int(sys.argv[1])); print('ready', flush=True)\n"
        "time.sleep(20)"
    )
    parent = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); os.abort()"
    )
    result = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert wait_for_end(int(result.stdout))


def wait_for_end(pid: int) -> bool:
    """Whether a process has ended, or is a zombie, within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_peak_memory_counts_this_process_alone() -> None:
    code = (
        "block = bytearray(200 * 2**20); from matrix_ssl.config import system; import subprocess, sys\n"
        "child = 'from matrix_ssl.config import system; print(system.peak_memory())'\n"
        "print(system.peak_memory(), subprocess.check_output([sys.executable, '-c', child], text=True))"
    )
    own, child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert int(own) > 200 * 2**20 > int(child) > 5 * 2**20


def test_a_block_that_computes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError, match=r"it takes longer than 0\.05 seconds"), system.limited(0.05):
        while True:
            pass
    assert signal.getsignal(signal.SIGPROF) == signal.SIG_DFL
    monkeypatch.delattr(signal, "setitimer")  # as on Windows
    with system.limited(0.0):
        sum(range(1000))


AS_ON_WINDOWS = """import os, signal, matrix_ssl.config.system as system
system.fcntl = system.resource = None
system.MOVES_HELD_FOLDERS = False
for module, names in (
    (os, "fork forkpty killpg setsid sched_getaffinity fchmod getuid geteuid"),
    (signal, "SIGUSR1 SIGUSR2 SIGALRM SIGPROF SIGCHLD SIGHUP SIGKILL setitimer alarm pthread_sigmask"),
):
    for name in names.split():
        delattr(module, name)
"""


def test_a_run_is_made_evaluated_and_made_again_without_the_calls_of_posix(tmp_path: Path) -> None:
    words = runs.tiny("data.subset=128")
    runs.succeed(tmp_path, words, before=f"{AS_ON_WINDOWS}{runs.BARE}")
    runs.succeed(tmp_path, ["evaluate", "r", "--protocol", "knn", "--device", "cpu"], before=AS_ON_WINDOWS)
    runs.succeed(tmp_path, [*words, "--fresh"], before=f"{AS_ON_WINDOWS}{runs.BARE}")
    assert (tmp_path / "r.1" / "evaluation").exists() and (tmp_path / "r" / CONFIG).exists()


def test_posix_modules_are_imported_in_one_place() -> None:
    """No other module would fail to load on Windows."""
    missing_there = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
    attributes = r"\b(os\.(fork|fchmod|getuid|geteuid|statvfs|killpg|setsid|umask|sched_\w+)|" + (
        r"signal\.(alarm|SIGALRM|SIGCHLD|SIGUSR1|SIGKILL|SIGHUP|SIGPROF|ITIMER_\w+|setitimer|pthread_\w+))\b|/proc/|/dev/shm"
    )
    users = set()
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        if not re.search(rf"\b({'|'.join(missing_there)})\b|{attributes}", text):
            continue
        tree = ast.parse(text)  # without comments
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        if names & missing_there or re.search(attributes, ast.unparse(tree)):
            users.add(path.relative_to(ROOT).as_posix())
    assert users == {"config/system.py"}


QUOTAS = {
    "200000 100000": 2, "150000 100000": 2, "10000 100000": 1, "max 100000": None, "-1 100000": None, "": None,
    "9900000 100000": None,
}  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("text", QUOTAS)
def test_the_cores_of_a_container_are_those_of_its_quota(monkeypatch, tmp_path, version, text) -> None:
    names = (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"])[2 - version]
    for name, content in zip(names, [text] if version == 2 else text.split(), strict=False):
        (tmp_path / name).write_text(f"{content}\n")
    monkeypatch.setattr(system, "_CPU_QUOTAS", ((tmp_path / "absent", names), (tmp_path, names)))
    monkeypatch.setattr(system, "_visible_cores", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    system.limit_threads()
    assert system.cores() == (QUOTAS[text] or 64)
    assert os.environ.get("OMP_NUM_THREADS") == (str(QUOTAS[text]) if QUOTAS[text] else None)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    system.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_commands_begin_as_many_threads_as_a_quota_allows(tmp_path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    code = f"""
import sys
from pathlib import Path
from matrix_ssl.cli import main
from matrix_ssl.config import system
system._CPU_QUOTAS, system._visible_cores = ((Path({str(tmp_path)!r}), ("cpu.max",)),), lambda: 64
sys.argv[1:] = ["recipes"]
try:
    main.main()
except SystemExit as end:
    assert end.code in (0, None)
import torch
import os
print(os.environ["OMP_NUM_THREADS"], torch.get_num_threads())
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-2:] == ["1", "1"]
