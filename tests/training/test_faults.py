"""Mistakes and broken surroundings: one clear sentence, a non-zero exit code, no traceback, nothing left behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from matrix_ssl.errors import DataError
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.files import read_json, read_lines
from matrix_ssl.runs.folder import read_config
from matrix_ssl.training.engine import check_unreadable, most_unreadable
from tests.support import runs
from tests.support.runs import BARE, UNPRIVILEGED, fail, from_files, make_images, start_processes, succeed, tiny

AS_NOBODY = UNPRIVILEGED if os.getuid() == 0 else ""
NO_FILES_ABOVE = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " + (
    "resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))"
)

OPEN_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit})); "


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    succeed(folder, tiny("data.subset=128"), before=BARE)
    return folder / "r"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own to break, ``r`` in the temporary folder."""
    return shutil.copytree(finished, tmp_path / "r")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MISTAKES = [
    (["pretrain", "dmeo"], "There is no recipe 'dmeo'. Did you mean 'demo'?"),
    (["pretrain", "photos/cats"], "'photos/cats' is a path, not a recipe: write --data photos/cats."),
    (["pretrain"], "recipe 'images_small' has no dataset of its own: give --data FOLDER."),
    (["pretrain", "images"], "recipe 'images' has no dataset of its own: give --data FOLDER."),
    (["pretrain", "--data", "absent"], "'absent' is not a file or folder here"),
    (["pretrain", "--data", "empty"], "empty: the folder is empty; choose one with images"),
    (["pretrain", "--data", "one"], "'one' is a single image: pre-training compares images, so add some."),
    (["pretrain", "images", "--data", "one"], "batch_size=256 is larger than the 1 images of 'one'"),
    (["pretrain", "--data", "few", "--set", "batch_size=8"], "use --set batch_size=4 or add images."),
    (["pretrain", "--data", "texts"], "no image among 1 files with the extensions .txt (1)"),
    (["pretrain", "--data", "few/000.jpg"], "few/000.jpg is a single image; name a folder of images"),
    (["pretrain", "--data", "digits"], "'digits' has 1-channel images, but recipe 'images_small' is for 3"),
    (
        ["pretrain", "cifar10", "--data", "digits"],
        "recipe 'cifar10' is for 3-channel images (data.mean has one number per channel)",
    ),
    (["pretrain", "cifar10"], "cifar10: the folder that holds it is unknown; use --data-root"),
    (["pretrain", "cifar10", "--data-root", "absent"], "absent"),
    (["pretrain", "demo", "--data", "few"], "'few' has 3-channel images, but recipe 'demo' is for 1"),
    (["pretrain", "demo", "--device", "cuda"], "--device cuda: PyTorch sees no GPU here; use --device cpu."),
    (["pretrain", "demo", "--device", "gpu"], "Invalid value for '--device': 'gpu' is not one of"),
    (
        ["pretrain", "demo", "--set", "method.name=matrixssl"],
        "method.name='matrixssl' is not a method. Did you mean 'mat",
    ),
    (["pretrain", "demo", "--set", "method.name=absent.py"], "method.name='absent.py': there is no such file."),
    (["pretrain", "demo", "--set", "method.rigde=1"], "Unknown setting 'method.rigde'. Did you mean 'ridge'?"),
    (["pretrain", "demo", "--set", "epoch=5"], "Unknown setting 'epoch'. Did you mean 'epochs'?"),
    (["pretrain", "demo", "--set", "epochs"], "--set 'epochs': write key=value, for example epochs=50."),
    (["pretrain", "demo", "--set", "epochs=many"], "epochs=many: expected an integer of at least 1."),
    (["pretrain", "demo", "--set", "epochs=0"], "epochs=0: expected an integer of at least 1."),
    (["pretrain", "demo", "--set", "optimizer.learning_rate=nan"], "optimizer.learning_rate=nan: expected a finite"),
    (["pretrain", "demo", "--set", "batch_size=5000"], "batch_size=5000 is larger than the 1437 images of 'digits'"),
    (["pretrain", "demo", "--set", "network.encoder=alexnet"], "does not accept images of 8 pixels"),
    (["pretrain", "demo", "--set", "data.channels=17"], "data.channels=17: expected an integer from -1 to 16."),
    (["pretrain", "demo", "--set", "network.width=4"], "network.width=4: expected an integer from 8 to 4096."),
    (["pretrain", "demo", "--sett", "epochs=1"], "See matrix-ssl pretrain --help."),
    (["pretrain", "demo", "--run", "r"], "The folder of a run is now --out."),
    (["pretrian", "demo"], "There is no command 'pretrian'. Did you mean 'pretrain'?"),
    (["pretrain", "demo", "extra"], "Got unexpected extra argument (extra)"),
    (["recipes", "dmeo"], "There is no recipe 'dmeo'"),
    (["evaluate", "absent"], "absent does not exist; name a run folder, a checkpoint file, torchvision"),
    (["evaluate", "few"], "few is not a run folder: it has no config.json."),
    (["evaluate"], "Missing argument 'WHERE'"),
    (["embed", "few", "--out", "x.npz"], "few is not a run folder: it has no config.json."),
    (["export", "few"], "few is not a run folder: it has no config.json."),
    (["report", "few"], "few is not a run folder: it has no config.json."),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    make_images(tmp_path / "one", 1)
    make_images(tmp_path / "few", 5)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("text")
    before = contents(tmp_path)
    device = ["--device", "cpu"] if arguments[0] == "pretrain" and "--device" not in arguments else []
    assert message in fail(tmp_path, [*arguments, *device])
    assert contents(tmp_path) == before
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_no_run_is_not_touched(tmp_path: Path) -> None:
    make_images(tmp_path / "r", 3)
    before = contents(tmp_path)
    for extra in ([], ["--fresh"]):
        assert fail(tmp_path, [*tiny(), *extra]) == "r is not empty and has no config.json: choose another folder."
        assert contents(tmp_path) == before


def test_a_file_in_the_place_of_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("mine")
    assert "r cannot be a run folder: Not a directory" in fail(tmp_path, tiny())
    assert contents(tmp_path) == {"r": b"mine"}


def test_images_that_cannot_be_read_are_skipped_and_counted(tmp_path: Path) -> None:
    paths = make_images(tmp_path / "photos", 40)
    paths[3].write_bytes(paths[3].read_bytes()[:300])
    paths[17].write_text("this is text")
    paths[18].write_bytes(b"")
    succeed(tmp_path, from_files("photos", epochs=3), before=BARE)
    skipped = read_lines(tmp_path / "r" / "skipped.jsonl")
    assert {line["where"] for line in skipped} == {f"photos/{i:03d}.jpg" for i in (3, 17, 18)}
    assert len(skipped) == 3 and all(line["why"] for line in skipped)
    assert read_json(tmp_path / "r" / "summary.json")["skipped"] == 3
    ended = succeed(tmp_path, ["embed", "r", "--out", "x.npz", "--device", "cpu"])
    assert sorted(line.partition(": ")[0] for line in ended.err.splitlines()) == [
        f"Skipped {tmp_path}/photos/{name}.jpg"
        for name in ("003", "017", "018")  # the run keeps the whole path
    ]
    assert "x.npz: 37 images" in ended.out
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert len(arrays["features"]) == len(arrays["where"]) == 37
        assert f"{tmp_path}/photos/016.jpg" in arrays["where"] and f"{tmp_path}/photos/017.jpg" not in arrays["where"]


def test_too_many_unreadable_images_end_the_run(tmp_path: Path) -> None:
    for path in make_images(tmp_path / "photos", 40)[::3]:
        path.write_text("this is text")
    message = fail(tmp_path, from_files("photos", epochs=5))
    assert (
        "14 of 40 images cannot be read, and at most 10 may be unreadable. All are in r/skipped.jsonl; fix" in message
    )
    assert len(read_lines(tmp_path / "r" / "skipped.jsonl")) == 14
    remedy = "data.max_unreadable=0.35"
    assert f"or accept the loss with --set {remedy}. The reason for 14 of them, such as photos/0" in message
    assert message.endswith(".jpg: not an image, or its first bytes are damaged.")
    succeed(tmp_path, from_files("photos", remedy, epochs=5), before=BARE)


def test_a_run_whose_images_are_refused_at_its_start_leaves_the_folder_to_other_settings(tmp_path: Path) -> None:
    paths = make_images(tmp_path / "photos", 40)
    for path in paths[:30]:
        path.write_text("this is text")
    measured = ("data.mean=[]", "data.std=[]")
    assert "30 of 40 images cannot be read" in fail(tmp_path, from_files("photos", *measured))
    assert len(read_lines(tmp_path / "r" / "skipped.jsonl")) == 30
    settings = (*measured, "data.value_range=0,510", "data.channels=3", "data.max_unreadable=0.75", "seed=1")
    succeed(tmp_path, from_files("photos", *settings), before=BARE)
    config = read_config(tmp_path / "r")
    assert (config.data.channels, config.data.value_range, config.seed) == (3, (0, 510), 1)
    assert all(0 < mean < 0.5 for mean in config.data.mean)  # of values halved
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("r")] == ["r"]


def test_unreadable_images_of_all_processes_count_together(tmp_path: Path) -> None:
    """Each of two processes meets six of twelve or about so many, of which ten may be unreadable."""
    for path in make_images(tmp_path / "photos", 60)[::5]:
        path.write_text("this is text")
    words = from_files("photos", "batch_size=20", epochs=1)
    ended = [each.wait() for each in start_processes(tmp_path, words, count=2)]
    assert all(each.code for each in ended)
    assert any("12 of 60 images cannot be read, and at most 10 may be unreadable." in each.err for each in ended)
    listed = [line["where"] for line in read_lines(tmp_path / "r" / "skipped.jsonl")]
    assert len(set(listed)) == 12
    (tmp_path / "r" / "skipped.jsonl").unlink()
    words = from_files("photos", "batch_size=20", "data.max_unreadable=0.2", epochs=3)
    assert [each.wait().code for each in start_processes(tmp_path, [*words, "--fresh"], count=2)] == [0, 0]
    assert len(read_lines(tmp_path / "r" / "skipped.jsonl")) == 12  # each once, whichever process meets it when


@pytest.mark.parametrize("part", [0.29, 0.57, 0.58])
def test_the_part_that_is_offered_is_accepted(part: float) -> None:
    most = round(100 * part)
    assert most_unreadable(100, part) == most
    found = [(f"{number}.jpg", "the file is empty") for number in range(most + 1)]
    with pytest.raises(DataError, match=rf"{most + 1} of 100 .* at most {most} may .* part={(most + 1) / 100:g}\."):
        check_unreadable(found, 100, "All are here", part=part, option="part=")
    check_unreadable(found, 100, "All are here", part=(most + 1) / 100, option="part=")


def test_no_readable_image_at_all(tmp_path: Path) -> None:
    for path in make_images(tmp_path / "photos", 20):
        path.write_text("this is text")
    assert "images tried in a row cannot be read" in fail(tmp_path, from_files("photos"))


def test_a_data_folder_without_permission(open_folder: Path) -> None:
    make_images(open_folder / "photos", 20)
    (open_folder / "photos").chmod(0o000)
    message = fail(open_folder, from_files("photos"), before=AS_NOBODY)
    assert message == "photos: no permission to list the folder; allow it."
    (open_folder / "photos").chmod(0o755)
    assert not (open_folder / "r").exists()


def test_a_folder_that_runs_cannot_be_made_in(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    assert fail(open_folder, tiny(), before=AS_NOBODY) == "Cannot write r: Permission denied; choose another place."
    assert not list(open_folder.iterdir())


def test_a_run_folder_that_cannot_be_written(open_folder: Path, run: Path) -> None:
    shutil.copytree(run, open_folder / "r")
    before = contents(open_folder)
    (open_folder / "r").chmod(0o555)
    for arguments in (tiny("data.subset=128"), ["evaluate", "r"], ["export", "r"]):
        message = fail(open_folder, arguments, before=AS_NOBODY)
        assert message.startswith("Cannot write r") and message.endswith("Permission denied; choose another place.")
    assert contents(open_folder) == before


@pytest.mark.parametrize("out", ["absent/x.npz", "forbidden/x.npz", "folder.npz"])
def test_features_that_cannot_be_written(open_folder: Path, run: Path, out: str) -> None:
    shutil.copytree(run, open_folder / "r")
    (open_folder / "forbidden").mkdir(mode=0o555)
    (open_folder / "folder.npz").mkdir()
    before = contents(open_folder)
    message = fail(open_folder, ["embed", "r", "--out", out, "--device", "cpu"], before=AS_NOBODY)
    assert message.startswith(f"Cannot write {out}: ") and "choose another place" in message
    assert contents(open_folder) == before


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_after_it(small_disk: Path) -> None:
    arguments = tiny("checkpoint_every=2", "log_every=1")
    filler = "\nimport matrix_ssl.training.engine as e; real = e.Engine.save\n" + (
        "def save(self):\n"
        "    if self.task.step == 6: fill()\n"
        "    real(self)\n"
        "def fill():\n"
        "    with open('filler', 'ab', buffering=0) as file:\n"
        "        try:\n"
        "            while file.write(bytes(1000)): pass\n"
        "        except OSError: pass\n"
        "e.Engine.save = save\n"
    )
    message = fail(small_disk, arguments, before=BARE + filler)
    assert message.startswith(
        "Cannot write r/checkpoints/step-000000006.safetensors: No space left on device; free space"
    )
    kept = [path.name for path in checkpoint.list_checkpoints(small_disk / "r")]
    assert kept[-1] == "step-000000004.safetensors" and not list((small_disk / "r").rglob("*.tmp"))
    (small_disk / "filler").unlink()
    again = succeed(small_disk, arguments, before=BARE)
    assert "Resuming after step 4 of 22" in again.err


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """As a quota answers: small files can be written, a checkpoint cannot."""
    words = tiny("data.subset=128")
    message = fail(tmp_path, words, before=BARE + "\n" + NO_FILES_ABOVE.format(size=20_000))
    assert "step-000000002.safetensors: File too large; free space there or choose another place." in message
    assert not list((tmp_path / "r" / "checkpoints").iterdir())
    assert "Resuming" not in succeed(tmp_path, words, before=BARE).err


def test_a_batch_of_many_files_needs_few_open_files(tmp_path: Path) -> None:
    shape = ("batch_size=256", "data.workers=2")
    for folder, words, before in (
        (tmp_path / "limited", shape, OPEN_FILES.format(limit=64)),
        (tmp_path / "plain", ("batch_size=256", "data.workers=0"), ""),
    ):
        make_images(folder / "photos", 300)
        succeed(folder, from_files("photos", *words), before=before + BARE)
        succeed(folder, ["embed", "r", "--out", "x.npz", "--device", "cpu"], before=before)
    assert runs.tensors(tmp_path / "limited" / "r") == runs.tensors(tmp_path / "plain" / "r")
    with np.load(tmp_path / "limited" / "x.npz") as limited, np.load(tmp_path / "plain" / "x.npz") as plain:
        for name in ("features", "data_digest"):  # the images lie in two places
            np.testing.assert_array_equal(limited[name], plain[name])


@pytest.mark.parametrize(
    "limit", [pytest.param(12, marks=pytest.mark.slow), 30, pytest.param(48, marks=pytest.mark.slow)]
)
def test_too_low_a_limit_of_open_files_is_one_sentence(tmp_path: Path, limit: int) -> None:
    make_images(tmp_path / "photos", 40)
    message = fail(tmp_path, from_files("photos"), before=OPEN_FILES.format(limit=limit) + BARE)
    assert message == (
        f"The limit of {limit} open files is too low: raise it with 'ulimit -n 1024' "
        "or read the images without workers (--set data.workers=0)."
    )
    succeed(tmp_path, from_files("photos", "data.workers=0"), before=OPEN_FILES.format(limit=limit) + BARE)


@pytest.mark.parametrize(
    "settings", [("optimizer.name=sgd",), pytest.param(("precision=float64",), marks=pytest.mark.slow)]
)
def test_a_huge_learning_rate_ends_with_advice(tmp_path: Path, settings: tuple[str, ...]) -> None:
    message = fail(tmp_path, tiny("optimizer.learning_rate=1e30", *settings), before=BARE)
    assert "not finite" in message and "Lower the learning rate (--set optimizer.learning_rate=...)" in message
    assert "--fresh" in message
    assert not (tmp_path / "r" / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    "command", [["evaluate", "r"], ["embed", "r", "--out", "x.npz"], ["export", "r"]], ids=lambda c: c[0]
)
class TestARunThatCannotBeUsed:
    def test_unfinished(self, run: Path, command: list[str]) -> None:
        for name in ("encoder.safetensors", "summary.json"):
            (run / name).unlink()
        before = contents(run.parent)
        message = fail(run.parent, command)
        assert message == "r has no encoder.safetensors yet; let its pre-training finish."
        assert contents(run.parent) == before

    def test_damaged(self, run: Path, command: list[str]) -> None:
        content = bytearray((run / "encoder.safetensors").read_bytes())
        content[-5] ^= 16
        (run / "encoder.safetensors").write_bytes(content)
        assert "r/encoder.safetensors is damaged" in fail(run.parent, command)
        (run / "encoder.safetensors").write_bytes(content[:100])
        assert "r/encoder.safetensors is damaged" in fail(run.parent, command)

    def test_of_another_architecture(self, run: Path, command: list[str]) -> None:
        tensors = load_file(run / "encoder.safetensors")
        tensors["stem.0.waight"] = tensors.pop("stem.0.weight")
        save_file(tensors, run / "encoder.safetensors")
        message = fail(run.parent, command)
        assert "matches 35 of 36 tensors of the network; 1 missing: stem.0.weight; 1 not in the network" in message

    def test_with_a_damaged_configuration(self, run: Path, command: list[str]) -> None:
        (run / "config.json").write_text('{"recipe": "demo"')
        assert "r/config.json cannot be read" in fail(run.parent, command)
        (run / "config.json").write_text('{"recipy": "demo"}')
        message = fail(run.parent, command)
        assert "r/config.json does not fit this version of matrix-ssl: Unknown setting 'recipy'" in message

    def test_without_a_teacher(self, run: Path, command: list[str]) -> None:
        shutil.rmtree(run / "checkpoints")
        assert "r has no teacher: its checkpoint is missing" in fail(run.parent, [*command, "--weights", "teacher"])


def test_a_damaged_configuration_does_not_start_a_new_run(run: Path) -> None:
    (run / "config.json").write_text("{")
    before = contents(run)
    assert "r/config.json cannot be read" in fail(run.parent, tiny("data.subset=128"))
    assert contents(run) == before


def test_damaged_metrics_are_named(run: Path) -> None:
    (run / "encoder.safetensors").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:20], *lines[1:]]) + "\n")
    message = fail(run.parent, tiny("data.subset=128"))
    assert "r/metrics.jsonl is damaged" in message


def test_unknown_protocols_and_formats(run: Path) -> None:
    assert "--protocol 'lineal' does not exist. Did you mean 'linear'?" in fail(
        run.parent, ["evaluate", "r", "--protocol", "knn,lineal"]
    )
    assert "'keras' is not one of" in fail(run.parent, ["export", "r", "--format", "keras"])
    assert "'tiny_resnet' is not a torchvision architecture" in fail(
        run.parent, ["export", "r", "--format", "torchvision"]
    )


def test_images_with_other_channels_cannot_be_embedded(run: Path) -> None:
    make_images(run.parent / "photos", 3)
    message = fail(run.parent, ["embed", "r", "--data", "photos", "--out", "x.npz"])
    assert message == "'photos' has 3-channel images, but the encoder was trained on 1-channel images."
    assert not (run.parent / "x.npz").exists()


def test_the_data_of_a_run_has_moved(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 20)
    succeed(tmp_path, from_files("photos"), before=BARE)
    (tmp_path / "photos").rename(tmp_path / "images")
    moved = fail(tmp_path, ["evaluate", "r"])
    assert f"'{tmp_path / 'photos'}' is not a file or folder here" in moved
    assert moved.endswith("If it was moved, name its new place by --data.")
    assert "'photos' is not a file or folder here" in fail(tmp_path, from_files("photos"))
    assert "is complete" in succeed(tmp_path, from_files("images"), before=BARE).err  # the same run, elsewhere
    succeed(tmp_path, ["evaluate", "r", "--data", "images", "--device", "cpu"], before=BARE)


def test_other_images_are_another_run(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 20)
    succeed(tmp_path, from_files("photos"), before=BARE)
    make_images(tmp_path / "photos", 24)
    assert "data.images: 20 -> 24" in fail(tmp_path, from_files("photos"))


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        make_images(tmp_path / "insects" / name, 10)
        make_images(tmp_path / "others" / name, 3)
    make_images(tmp_path / "others" / "cow", 3)
    succeed(tmp_path, from_files("insects"), before=BARE)
    message = fail(tmp_path, ["evaluate", "r", "--test-data", "others", "--device", "cpu"])
    assert message == "training and test images have different classes: cow."


@pytest.mark.parametrize(
    "command", [["recipes"], ["recipes", "demo"], ["--help"], ["pretrain", "--help"], ["--version"]]
)
def test_a_closed_pipe_is_no_error(tmp_path: Path, command: list[str]) -> None:
    """``matrix-ssl recipes | head -1``."""
    close = "import os; reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1); os.close(writer)"
    ended = runs.run(tmp_path, command, before=close)
    assert ended.err == "" and ended.code >= 0


def test_the_python_interpreter_shows_no_traceback_either(tmp_path: Path) -> None:
    """The installed command and ``python -m`` end alike."""
    for command in ([sys.executable, "-m", "matrix_ssl"], [str(Path(sys.executable).with_name("matrix-ssl"))]):
        ended = subprocess.run([*command, "pretrain", "dmeo"], cwd=tmp_path, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == "error: There is no recipe 'dmeo'. Did you mean 'demo'?\n"


def test_an_interrupt_outside_of_training_ends_with_a_word(run: Path) -> None:
    before = contents(run)
    interrupt = (
        "import signal, matrix_ssl.evaluate.protocols as p\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "p.extract = lambda *_, **__: signal.raise_signal(signal.SIGINT) or 1 / 0"  # to this thread, before it returns
    )
    ended = runs.run(run.parent, ["evaluate", "r", "--device", "cpu"], before=interrupt)
    assert (ended.code, ended.err.strip(), ended.out) == (130, "Stopped.", "")
    assert contents(run) == before


def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    """What is no mistake of the user must not look like one."""
    ended = runs.run(
        tmp_path, ["recipes", "demo"], before="import matrix_ssl.training.setup as t; t.complete = lambda _: 1 / 0"
    )
    assert ended.code == 1 and "ZeroDivisionError" in ended.err and "error: " not in ended.err


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    """Linux allows any bytes in a file name."""
    folder = tmp_path / os.fsdecode(b"photos-\xff")
    paths = make_images(folder, 20)
    paths[0].rename(folder / os.fsdecode(b"\xfe.jpg"))
    (folder / os.fsdecode(b"\xfe.jpg")).write_text("text")
    arguments = [word for word in from_files(folder.name) if word not in ("--out", "r")]
    ended = succeed(tmp_path, arguments, before=BARE)
    run = tmp_path / "runs" / "photos-?"
    assert read_config(run).data.source == str(folder)
    (line,) = read_lines(run / "skipped.jsonl")
    assert os.fsencode(line["where"]) == b"photos-\xff/\xfe.jpg"
    ended = succeed(tmp_path, ["embed", "runs/photos-?", "--out", folder.name + ".npz", "--device", "cpu"])
    assert ended.out == "photos-\\udcff.npz: 19 images, 32 features each.\n"
    message = fail(tmp_path, [*arguments, "--out", folder.name + "-run"])
    assert message == r"photos-\udcff-run is not Unicode, which safetensors files need: choose another folder."
