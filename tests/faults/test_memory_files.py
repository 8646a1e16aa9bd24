"""Reports, weights, annotations, questions, indexes and comparisons under a limit of their address space."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from matrix_ssl.report.run import log
from tests.faults.test_memory import LIMITED
from tests.support import comparisons
from tests.support.runs import BARE, check_failure, fail, from_files, make_images, run, start, succeed, tiny

READ = "from pathlib import Path\n{imports}\n{call}\nraise SystemExit(0)"  # instead of a whole command that reads it
REPORT = 128  # MiB that "report" may take for any number of lines
BESIDE = 128  # MiB beside what grows with the input
ANNOTATIONS, QUESTIONS, CHECKPOINT, EXPORT, INDEX = 8, 5, 2, 4, 3  # of the size of the input
COMPARE = 384  # MiB of "compare", and of each of its jobs


def under(mib: float) -> str:
    """Code for ``before`` that limits the address space of the process."""
    return LIMITED.format(mib=int(mib))


def size(path: Path) -> float:
    """MiB of a file."""
    return path.stat().st_size / 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``r``, whose encoder is untrained."""
    folder = tmp_path_factory.mktemp("files")
    succeed(folder, ["import", "random/tiny_resnet", "--image-size", "32", "--out", "r"])
    return folder


def lines(count: int, values: int) -> Iterator[str]:
    """Lines of metrics, with eigenvalues, and words that nobody reads."""
    spectrum = [float(f"{value:.4g}") for value in np.random.default_rng(0).random(values)]
    for step in range(count):
        line = {"step": step + 1, "loss": 1.0 / (step + 1), "effective_rank": 3.0, "spectrum": spectrum}
        yield json.dumps(line) + "\n"


def test_the_points_of_a_curve_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick one: a curve has no more points for more lines."""
    monkeypatch.setattr(log, "MOST_POINTS", 64)
    with (tmp_path / "m.jsonl").open("w") as file:
        file.writelines(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, 1000))
    lines = log.read_log(tmp_path / "m.jsonl").log
    curve = lines.curve("loss", "loss")
    assert lines.lines == 999
    assert curve is not None and len(curve.x) <= 64 + 3  # and the first, the last and the rest


@pytest.mark.slow
def test_a_report_needs_no_more_memory_for_more_lines(tmp_path: Path) -> None:
    succeed(tmp_path, tiny(), before=BARE)
    with (tmp_path / "r" / "metrics.jsonl").open("w") as file:
        file.writelines(lines(42_000, 400))
    assert size(tmp_path / "r" / "metrics.jsonl") > REPORT
    ended = run(tmp_path, ["report", "r"], before=under(REPORT))
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_weights_of_others_with_much_beside_the_encoder(folder: Path) -> None:
    from matrix_ssl.encoder import load_encoder

    encoder = {f"backbone.{name}": value for name, value in load_encoder(folder / "r").state_dict().items()}
    beside = {"state": {0: {"exp_avg": torch.zeros(300, 2**18)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"state_dict": encoder, "optimizer": beside}, folder / "other.pth")
    words = ["import", "other.pth", "--architecture", "tiny_resnet", "--image-size", "32", "--fresh", "--out", "i"]
    ended = run(folder, words, before=under(CHECKPOINT * size(folder / "other.pth") + BESIDE))
    assert ended.code == 0, ended.err
    message = fail(folder, words, before=under(4))
    assert message.startswith("The memory is not enough.") and "Use smaller inputs" in message


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "torchvision"])
def test_exports_need_so_many_times_the_encoder(folder: Path, form: str) -> None:
    if not (folder / "large").exists():
        succeed(folder, ["import", "random/resnet50", "--image-size", "32", "--out", "large"])
    ending = {"safetensors": "safetensors", "torchvision": "pth"}[form]
    words = ["export", "large", "--format", form, "--out", f"out.{ending}"]
    ended = run(folder, words, before=under(EXPORT * size(folder / "large" / "encoder.safetensors") + BESIDE))
    assert ended.code == 0, ended.err
    (folder / f"out.{ending}").unlink()
    message = fail(folder, words, before=under(30))
    assert "memory" in message and not (folder / f"out.{ending}").exists()


@pytest.mark.slow
def test_annotations_take_so_many_times_their_size(tmp_path: Path) -> None:
    polygon = [round(float(value), 2) for value in np.random.default_rng(0).uniform(10, 400, 48)]
    one = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100.0, "bbox": [10, 10, 390, 390]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": number, "segmentation": [polygon], **one} for number in range(1, 50_001)],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    imports = "from matrix_ssl.evaluate.detection.annotations import read_annotations"
    read = READ.format(imports=imports, call="read_annotations(Path('a.json'))")
    ended = run(tmp_path, [], before=under(ANNOTATIONS * size(tmp_path / "a.json") + 16) + read)
    assert ended.code == 0, ended.err
    (tmp_path / "images").mkdir()
    words = ["detect", "--train-images", "images", "--train-annotations", "a.json", "--val-images", "images",
             "--val-annotations", "a.json", "--encoder", "random/resnet18", "--out", "d"]  # fmt: skip
    message = fail(tmp_path, words, before=under(2 * size(tmp_path / "a.json")))
    assert "memory" in message


@pytest.mark.slow
def test_questions_take_so_many_times_their_size(tmp_path: Path) -> None:
    row = json.dumps({"question": "What is 1 plus 1? " + "x" * 100, "answer": "y" * 150}) + "\n"
    (tmp_path / "q.jsonl").write_text(row * 150_000)
    imports = "from matrix_ssl.llm.data.question_files import read_rows"
    read = READ.format(imports=imports, call="rows = read_rows('q.jsonl')")
    ended = run(tmp_path, [], before=under(QUESTIONS * size(tmp_path / "q.jsonl") + 16) + read)
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_an_index_takes_so_many_times_its_size(folder: Path) -> None:
    pytest.importorskip("fastapi")
    rows = np.random.default_rng(0).standard_normal((200_000, 256), dtype=np.float32)
    np.savez(folder / "x.npz", features=rows, where=np.array([f"{row:06d}.jpg" for row in range(len(rows))]))
    words = ["serve", "r", "--index", "x.npz", "--device", "cpu", "--check"]
    read = READ.format(
        imports="from matrix_ssl.api.serve.index import read_index", call="index = read_index(Path('x.npz'))"
    )
    ended = run(folder, [], before=under(INDEX * size(folder / "x.npz") + 16) + read)
    assert ended.code == 0, ended.err
    message = fail(folder, words, before=under(size(folder / "x.npz")))
    assert "memory" in message


@pytest.mark.slow
def test_comparisons_need_what_their_trainings_need(tmp_path: Path) -> None:
    words = comparisons.words("--seeds", "1", "--trials", "1", "--budget", "1")
    ended = run(tmp_path, words, before=comparisons.FORKED + under(COMPARE))
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_worth_under_the_limit_of_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        make_images(tmp_path / "photos" / name, 12)
    succeed(tmp_path, from_files("photos"), before=BARE)
    words = ["worth", "images", "--data", "photos", "--from", "r", "--seeds", "1", "--epochs", "1", "--out", "w",
             "--device", "cpu", *from_files("photos", "batch_size=8")[8:],
             "--tune-set", "steps=2", "--tune-set", "batch_size=4", "--tune-set", "rates=none"]  # fmt: skip
    ended = start(tmp_path, words, before=under(512)).wait(3600)  # it has 23 parts
    assert ended.code == 0, ended.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune", "score", "diagnose"])
def test_language_models_that_do_not_fit_are_one_sentence(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    from tests.support import llm_toys

    llm_toys.llama().save_pretrained(tmp_path / "m")
    llm_toys.tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in llm_toys.questions(8)))
    words = {
        "finetune": ["--data", "q.jsonl", "--template", "plain", "--set", "epochs=1", "--set", "batch_size=4"],
        "score": ["--data", "q.jsonl", "--template", "plain", "--max-new-tokens", "2"],
        "diagnose": ["--text", "q.jsonl"],
    }[name]
    out = "s.jsonl" if name == "score" else "o"
    ended = run(tmp_path, ["llm", name, "--model", "m", "--out", out, "--device", "cpu", *words], before=under(1024))
    assert ended.code == 0, ended.err
    allocate = "import torch; torch.nn.Module.to = lambda *_, **__: torch.empty(2**44)"
    words = ["llm", name, "--model", "m", "--out", f"again-{out}", "--device", "cpu", *words]
    message = check_failure(run(tmp_path, words, before=allocate), code=1)
    assert message.startswith("The memory is not enough. Use smaller batches (")
