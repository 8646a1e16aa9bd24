"""The run folder's files, under kills, full disks and second writers."""

import errno
import json
import math
import os
import resource
import signal
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from matrix_ssl.config import MethodConfig, RunConfig, system, to_dict
from matrix_ssl.errors import RunFolderError
from matrix_ssl.runs.environment import environment
from matrix_ssl.runs.files import (
    append_line,
    check_writable,
    read_json,
    read_lines,
    temporary_folder,
    write_atomically,
    write_json,
)
from matrix_ssl.runs.folder import (
    check_folder,
    claim,
    has_begun,
    identity,
    is_unclaimed,
    lock,
    read_config,
    set_aside,
    tidy,
)
from matrix_ssl.runs.metrics import MetricsWriter
from tests.conftest import unprivileged


@pytest.mark.parametrize(("before", "now", "remedy"), [
    ({"epochs": 8}, {"epochs": 9}, " To train its encoder further, start a second run from it: --from {} --set "
                                   "epochs=1."),
    ({"epochs": 9}, {"epochs": 8}, ""), ({"epochs": 8}, {"epochs": 9, "seed": 1}, ""), ({"seed": 8}, {"seed": 9}, ""),
])  # fmt: skip
def test_the_same_run_with_more_epochs_names_its_remedy(
    tmp_path: Path, before: dict[str, int], now: dict[str, int], remedy: str
) -> None:
    claim(tmp_path, RunConfig(**before))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunFolderError) as caught:
        claim(tmp_path, RunConfig(**now))
    assert str(caught.value).endswith(f"or use --fresh to start over.{remedy.format(tmp_path)}")


@pytest.mark.parametrize("description", [RunConfig(seed=1), {"settings": {"seed": 1}}], ids=["pretrain", "others"])
def test_a_run_that_has_made_no_step_gives_way_to_one_with_other_settings(
    tmp_path: Path, description: RunConfig | dict[str, Any]
) -> None:
    assert not has_begun(tmp_path / "absent") and not has_begun(tmp_path)
    write_json(tmp_path / "config.json", {"settings": {"seed": 0}})
    for name in ("metrics.jsonl", "skipped.jsonl", "own-method.py", "own-encoder.json", ".lock"):
        (tmp_path / name).write_text("" if name == "metrics.jsonl" else "{}\n")
    assert has_begun(tmp_path)  # nothing shows yet that this is no other program's file
    write_json(tmp_path / "environment.json", {"run": identity(tmp_path)})
    assert not has_begun(tmp_path)
    claim(tmp_path, description)
    assert names(tmp_path) == {"config.json", ".lock"}  # what was found in the images then may be mended by now
    assert read_json(tmp_path / "config.json")["seed" if isinstance(description, RunConfig) else "settings"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "encoder.safetensors", "result.json", "notes.txt"])
def test_a_run_with_anything_else_keeps_its_settings(tmp_path: Path, name: str) -> None:
    claim(tmp_path, {"seed": 0})
    (tmp_path / name).write_text('{"step": 1}\n')
    assert has_begun(tmp_path)
    with pytest.raises(RunFolderError, match=r"was started with other settings \(seed: 0 -> 1\)"):
        claim(tmp_path, {"seed": 1})
    claim(tmp_path, {"seed": 0})
    assert names(tmp_path) == {"config.json", name}


def test_a_file_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    content = {"model_type": "bert"}
    write_json(tmp_path / "config.json", content)
    for facts in (None, {}, {"run": "1234567890abcdef"}):
        if facts is not None:
            write_json(tmp_path / "environment.json", facts)
        for description in (RunConfig(), {"seed": 1}):
            with pytest.raises(RunFolderError, match=r"choose another folder|does not fit"):
                claim(tmp_path, description)
    assert read_json(tmp_path / "config.json") == content


def test_the_file_of_a_method_may_be_moved_but_not_changed(tmp_path: Path) -> None:
    run, old, new = (tmp_path / name for name in ("run", "old.py", "new.py"))
    run.mkdir()
    claim(run, RunConfig(method=MethodConfig(str(old))))
    (run / "checkpoints").mkdir()
    new.write_text("x = 1\n")
    with pytest.raises(RunFolderError, match=r"method\.name: '.*old\.py' -> '.*new\.py'"):  # it has kept no source
        claim(run, RunConfig(method=MethodConfig(str(new))))
    (run / "own-method.py").write_text("x = 1\n")
    claim(run, RunConfig(method=MethodConfig(str(new))))
    assert read_config(run).method.name == str(old)
    new.write_text("x = 2\n")
    for name in (str(new), str(tmp_path / "absent.py"), "simclr"):
        with pytest.raises(RunFolderError, match=r"method\.name"):
            claim(run, RunConfig(method=MethodConfig(name)))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_write_atomically_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"long old content", b"new"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_write_atomically_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", lambda file: file.write(b"x"))
        assert os.umask(umask) == umask  # it is left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file) -> None:
        file.write(b"half of the new")
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        write_atomically(path, write)
    assert (path.read_bytes(), names(tmp_path)) == (b"old", {"file"})


def test_a_full_disk_leaves_the_old_file_and_nothing_else(small_disk: Path) -> None:
    path = small_disk / "file"
    path.write_bytes(b"old")
    with pytest.raises(RunFolderError, match=r"Cannot write .*file: No space left on device; free space there"):
        write_atomically(path, lambda file: file.write(bytes(2_000_000)))
    assert (path.read_bytes(), names(small_disk)) == (b"old", {"file"})


def test_a_line_that_does_not_fit_is_an_error_and_the_lines_before_it_stay(small_disk: Path) -> None:
    path = small_disk / "lines.jsonl"
    written = 0
    with pytest.raises(RunFolderError, match="No space left on device"):
        for step in range(100_000):
            append_line(path, {"step": step, "text": "x" * 100})
            written += 1
    assert [line["step"] for line in read_lines(path)] == list(range(written))
    assert written > 100


def test_temporary_files_that_cannot_be_written_are_told(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = r"Let the variable TMPDIR name a folder with free space in which files can be written\.$"
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    full = pytest.raises(RunFolderError, match=rf"written in .*disk: No space left on device\. {remedy}")
    with full, temporary_folder() as folder:
        (folder / "file").write_bytes(bytes(2_000_000))
    with pytest.raises(FileNotFoundError), temporary_folder():
        (tmp_path / "absent").read_bytes()  # something else
    assert names(small_disk) == set()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(RunFolderError, match=rf"absent: No such file or directory\. {remedy}"), temporary_folder():
        raise AssertionError("there is no folder")


def test_a_file_size_limit_is_reported_like_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(RunFolderError, match=r"Cannot write .*file: File too large; free space"):
            write_atomically(tmp_path / "file", lambda file: file.write(bytes(2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == set()


def test_a_folder_without_permission_is_named(open_folder: Path) -> None:
    (open_folder / "file").write_bytes(b"old")
    open_folder.chmod(0o555)
    with unprivileged(), pytest.raises(RunFolderError, match=r"Cannot write .*file: Permission denied; choose another"):
        write_atomically(open_folder / "file", lambda file: file.write(b"new"))
    assert ((open_folder / "file").read_bytes(), names(open_folder)) == (b"old", {"file"})


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"Cannot write .*absent/file: No such file or directory; choose another"):
        write_atomically(tmp_path / "absent" / "file", lambda file: file.write(b"x"))


def test_a_link_of_the_system_is_not_replaced(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:  # to which the shell may have sent the output
        for place in (Path(f"/dev/fd/{file.fileno()}"), Path(f"/proc/self/fd/{file.fileno()}")):
            with pytest.raises(RunFolderError, match=r"Cannot write .*fd/\d+: it exists and is not a file; choose"):
                check_writable(place)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_not_a_file_is_not_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "place")
    kind = (tmp_path / "place").stat().st_mode
    for use in (lambda path: write_atomically(path, lambda file: file.write(b"x")), check_writable):
        with pytest.raises(RunFolderError, match=r"Cannot write .*place: it exists and is not a file; choose another"):
            use(tmp_path / "place")
    assert (tmp_path / "place").stat().st_mode == kind and names(tmp_path) == {"place"}


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "file")
    assert names(tmp_path) == set()
    with pytest.raises(RunFolderError, match=r"Cannot write .*absent/file: No such file or directory"):
        check_writable(tmp_path / "absent" / "file")


def test_json_keeps_every_letter(tmp_path: Path) -> None:
    value = {"name": "Bär 熊", "numbers": [1, 0.1, None], "nested": {"yes": True}}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert "Bär 熊" in (tmp_path / "file.json").read_text(encoding="utf-8")


def test_json_keeps_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", [os.fsdecode(b"a\xff\xc3\xa4")])
    (found,) = read_json(tmp_path / "file.json")
    assert os.fsencode(found) == b"a\xff\xc3\xa4"


@pytest.mark.parametrize("content", [b"", b"{", b"[1,", b"\xff\xfe", b'{"recipe": "x"', b"nul", b"\0" * 50])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config\.json cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "value", [[], 3, "text", {"recipies": "x"}, {"epochs": "many"}, {"data": 7}, {"method": {"options": 3}}]
)
def test_json_that_is_no_configuration_is_named(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "config.json", value)
    with pytest.raises(RunFolderError, match=r"config\.json does not fit this version"):
        read_config(tmp_path)


def test_a_folder_without_configuration_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no config\.json"):
        read_config(tmp_path)


def test_a_comparison_and_a_file_are_told_from_a_run(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no config\.json"):
        read_config(tmp_path)
    folder = tmp_path / "runs" / "simclr-8-epochs" / "seed-0"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", to_dict(RunConfig()))
    with pytest.raises(RunFolderError) as caught:
        read_config(tmp_path)
    assert str(caught.value) == f"{tmp_path} is a comparison, not a run: name one of its runs, such as {folder}."
    with pytest.raises(RunFolderError) as caught:
        read_config(tmp_path / "compare.json")
    assert str(caught.value) == f"{tmp_path / 'compare.json'} is a file, not a run folder."


def test_read_config_gives_back_what_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", to_dict(RunConfig(epochs=7)))
    assert read_config(tmp_path) == RunConfig(epochs=7)


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_last_line_cut_anywhere_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"step": 1})
    append_line(path, {"step": 2})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert read_lines(path) == ([{"step": 1}] if cut <= 12 else [])


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(RunFolderError, match=r"lines\.jsonl is damaged"):
        read_lines(tmp_path / "lines.jsonl")


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "lines.jsonl") == []


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            for number in range(100):
                append_line(path, {"child": child, "number": number, "text": "x" * (37 * number)})
            os._exit(0)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
    found = read_lines(path)
    assert sorted((line["child"], line["number"]) for line in found) == [(c, n) for c in range(4) for n in range(100)]
    assert all(len(line["text"]) == 37 * line["number"] for line in found)


def test_the_metrics_writer_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, after_step=0)
    for step in range(1, 8):
        writer.write({"step": step, "loss": step / 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a line
    again = MetricsWriter(tmp_path, after_step=5)
    assert [line["step"] for line in again.lines] == [1, 2, 3, 4, 5]
    again.write({"step": 6, "loss": 0.1})
    assert [(line["step"], line["loss"]) for line in read_lines(tmp_path / "metrics.jsonl")][-2:] == [
        (5, 5 / 3),
        (6, 0.1),
    ]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    line = {"step": 1, "a": math.nan, "b": math.inf, "c": 1.5, "spectrum": [1.0, math.nan, -math.inf]}
    MetricsWriter(tmp_path, after_step=0).write(line)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "step": 1, "a": None, "b": None, "c": 1.5, "spectrum": [1.0, None, None],
    }  # fmt: skip


def test_a_second_lock_is_refused_until_the_first_process_dies(tmp_path: Path) -> None:
    """Even by SIGKILL, and though a child that it forked lives on."""
    ready, to_parent = os.pipe()
    holder = os.fork()
    if holder == 0:
        with lock(tmp_path / "run"):
            orphan = os.fork()
            if orphan:
                os.write(to_parent, str(orphan).encode())
            signal.pause()
        os._exit(0)
    orphan = int(os.read(ready, 20))
    try:
        with pytest.raises(RunFolderError, match="is being written by another process"), lock(tmp_path / "run"):
            raise AssertionError("not reached")
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        with lock(tmp_path / "run"):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)
        os.close(ready)
        os.close(to_parent)


def test_a_lock_outlives_a_block_within_that_takes_it_again(tmp_path: Path) -> None:
    """As where a callback of a training evaluates its run; another thread is refused as another process is."""
    found: list[str] = []

    def take() -> None:
        try:
            with lock(tmp_path / "run"):
                found.append("taken")
        except RunFolderError as error:
            found.append(str(error).partition("is being written by ")[2].partition(":")[0])

    with lock(tmp_path / "run"):
        take()
        other = threading.Thread(target=take)
        other.start()
        other.join()
        process = os.fork()
        if process == 0:
            take()
            os._exit(found[-1] != "another process")
        assert os.waitpid(process, 0)[1] == 0
    take()
    assert found == ["taken", "another thread of this process", "taken"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_another_process(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would ever let go of what nobody holds."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(system.fcntl, "lockf", refuse)
    with pytest.raises(RunFolderError) as caught, lock(tmp_path / "run"):
        raise AssertionError("not reached")
    assert str(caught.value) == (
        f"Cannot write {tmp_path / 'run'}: its file system cannot lock files ({os.strerror(number)}); choose another "
        "place."
    )


def test_a_lock_that_the_system_refuses_as_forbidden_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX allows EACCES for a lock of another process, too."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(system.fcntl, "lockf", refuse)
    with pytest.raises(RunFolderError, match="is being written by another process"), lock(tmp_path / "run"):
        raise AssertionError("not reached")


def test_a_lock_makes_the_folders_above_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with lock(tmp_path / "a" / "b"):
            assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_made_for_what_fails_before_it_writes_is_removed(tmp_path: Path) -> None:
    """With those above it; what was there before, or has been written, stays."""
    (tmp_path / "mine").mkdir()
    for name, left in (("a/b", set()), ("mine", {".lock"}), ("mine/c", {".lock"})):
        with pytest.raises(ZeroDivisionError), lock(tmp_path / name):
            raise ZeroDivisionError
        assert {path.name for path in (tmp_path / "mine").iterdir()} == (left if name != "a/b" else set())
        assert not (tmp_path / "a").exists()
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").touch()
        raise ZeroDivisionError
    assert (tmp_path / "a" / "b" / "x").exists()


def test_a_lock_of_a_folder_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removed the file between its opening and its locking here."""
    path = tmp_path / ".lock"
    opened = system.open_lock

    def open_and_remove(place: Path) -> Any:
        file = opened(place)
        path.unlink()
        return file

    monkeypatch.setattr(system, "open_lock", open_and_remove)
    with pytest.raises(BlockingIOError), system.locked(path):
        raise AssertionError("not reached")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for use in (lambda: lock(tmp_path / "run").__enter__(), lambda: check_folder(tmp_path / "run")):
        with pytest.raises(RunFolderError, match=r"/run"):
            use()
    assert (tmp_path / "run").read_text() == "mine"


def test_only_runs_and_empty_folders_become_runs(tmp_path: Path) -> None:
    check_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
    (tmp_path / "empty" / ".lock").touch()
    check_folder(tmp_path / "empty")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    (tmp_path / "run" / "other").touch()
    check_folder(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(RunFolderError, match=r"photos is not empty and has no config.json"):
        check_folder(tmp_path / "photos")
    assert names(tmp_path / "photos") == {"cat.jpg"}


def test_a_folder_with_the_lock_and_unfinished_copies_of_the_first_file_is_unclaimed(tmp_path: Path) -> None:
    assert is_unclaimed(tmp_path / "absent", first="config.json")
    for name in (".lock", ".config.json.ab12cd3_.tmp", ".config.json.zz99zz99.tmp"):
        (tmp_path / name).touch()
        assert is_unclaimed(tmp_path, first="config.json")
        check_folder(tmp_path)
    assert not is_unclaimed(tmp_path, first="plan.json")
    foreign = (".config.json.tmp", ".config.json.AB12CD34.tmp", ".notes.tmp", ".x.config.json.ab12cd34.tmp", "a.tmp")
    for name in foreign:
        (tmp_path / name).touch()
        assert not is_unclaimed(tmp_path, first="config.json"), name
        (tmp_path / name).unlink()
    (tmp_path / ".config.json.linked00.tmp").symlink_to("elsewhere")
    assert not is_unclaimed(tmp_path, first="config.json")


def test_runs_are_set_aside_under_the_next_free_number(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert set_aside(run) is None
    for number in (1, 2, 3):
        run.mkdir()
        assert set_aside(run) is None  # it holds no run
        (run / "config.json").write_text(str(number))
        assert set_aside(run) == tmp_path / f"run.{number}"
    assert [(tmp_path / f"run.{n}" / "config.json").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]
    assert not run.exists()


def test_the_folder_that_the_command_runs_in_is_not_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFolderError, match="start the command in another folder"):
        set_aside(Path())


def test_tidy_removes_only_what_killed_writers_left(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    kept = ["config.json", "notes.tmp", ".notes.tmp", ".a.B-1.tmp", "checkpoints/step-000000003.safetensors", ".lock"]
    left = [".config.json.ab12.tmp", "checkpoints/.step-000000003.safetensors.zz9_.tmp"]
    for name in kept + left:
        (tmp_path / name).touch()
    (tmp_path / "skipped.jsonl").write_text('{"where": "a"}\n{"whe')
    tidy(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {*kept, "skipped.jsonl"}
    append_line(tmp_path / "skipped.jsonl", {"where": "b"})
    assert read_lines(tmp_path / "skipped.jsonl") == [{"where": "a"}, {"where": "b"}]


def test_the_environment_holds_what_a_reader_needs() -> None:
    found = environment(device="cpu", device_name="cpu", threads=3, processes=2)
    assert found.keys() >= {
        "python", "torch", "torchvision", "numpy", "matrix_ssl", "platform", "device", "device_name", "threads",
        "processes", "commit",
    }  # fmt: skip
    assert (found["device"], found["threads"], found["processes"]) == ("cpu", 3, 2)
    text = json.dumps(found)
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4
    assert str(Path.home()) not in text
