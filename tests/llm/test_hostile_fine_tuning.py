"""Fine-tunings with damaged, swapped or foreign files, and secrets among their settings."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from matrix_ssl.errors import CheckpointError, ConfigError, DataError

pytest.importorskip("transformers")

from matrix_ssl.llm import models
from matrix_ssl.llm.data import question_files
from matrix_ssl.llm.data.examples import make_examples
from matrix_ssl.llm.finetune.arguments import INSTEAD
from matrix_ssl.llm.finetune.resume import newest_checkpoint, resuming, warn_of_missing_state
from matrix_ssl.llm.finetune.settings import parse_assignments
from matrix_ssl.runs.digests import write_digests
from tests.support import llm_toys


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a fine-tuning with checkpoints of steps 2 and 4."""
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"seed": 0}, "places": {"data": "x"}}))
    for step in (2, 4):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (folder / name).write_bytes(f"{name} of step {step}".encode())
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "train_batch_size": 8}))
        write_digests(folder, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "new", "digests.json"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(out: Path, name: str) -> None:
    newest = out / "checkpoints" / "checkpoint-4"
    assert newest_checkpoint(out, print) == (4, str(newest))
    (newest / name).write_bytes(b"cut")
    said: list[str] = []
    assert newest_checkpoint(out, said.append) == (2, str(newest.with_name("checkpoint-2")))
    assert name in said[0] and "checkpoint before" in said[0]


def test_a_checkpoint_of_a_different_run_is_not_used(out: Path) -> None:
    (out / "config.json").write_text(json.dumps({"settings": {"seed": 1}}))
    with pytest.raises(CheckpointError, match="different run"):
        newest_checkpoint(out, print)


def test_a_checkpoint_without_digests_is_not_complete(out: Path) -> None:
    (out / "checkpoints" / "checkpoint-4" / "digests.json").unlink()
    assert newest_checkpoint(out, print)[0] == 2


def test_checkpoints_of_an_earlier_version_are_used(out: Path) -> None:
    for path in out.glob("checkpoints/*/digests.json"):
        path.unlink()
    assert newest_checkpoint(out, print)[0] == 4


@pytest.mark.parametrize("state", ["{", "[]", "{}", '{"global_step": 3, "train_batch_size": 8}'])
def test_a_state_of_a_different_training_is_not_used_without_digests_either(out: Path, state: str) -> None:
    for path in out.glob("checkpoints/*/digests.json"):
        path.unlink()
    (out / "checkpoints" / "checkpoint-4" / "trainer_state.json").write_text(state)
    said: list[str] = []
    assert newest_checkpoint(out, said.append)[0] == 2
    assert "trainer_state.json" in said[0] and "checkpoint before" in said[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optimizer.pt", "no state of the optimizer"),
        ("scheduler.pt", "the learning rate start anew"),
        ("rng_state.pth", "random numbers start anew"),
        ("", None),
    ],
)
def test_what_a_checkpoint_lacks_is_said(out: Path, name: str, words: str | None) -> None:
    folder, said = out / "checkpoints" / "checkpoint-4", list[str]()
    (folder / name).unlink() if name else None
    warn_of_missing_state(folder, SimpleNamespace(say=said.append))
    assert len(said) == (words is not None) and (words or "") in "".join(said)


def test_what_a_library_cannot_read_of_a_checkpoint_is_one_sentence() -> None:
    recorder = SimpleNamespace(has_begun=False)
    words = r"c-4 cannot be resumed: Cut\. Remove that folder to resume from the checkpoint before it"
    with pytest.raises(CheckpointError, match=words), resuming("c-4", recorder):
        raise RuntimeError("Cut. And more.")
    for place, begun in ((None, False), ("c-4", True)):  # errors of the training itself
        recorder.has_begun = begun
        with pytest.raises(RuntimeError), resuming(place, recorder):
            raise RuntimeError("Cut.")


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, print) == (0, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [("no_cuda", "use --device cpu"), ("evaluation_strategy", "set eval_strategy"), ("lr", "set learning_rate"),
     ("ddp_backend", "nccl on CUDA"), ("foo_bar", "Known: .*, seed, .*TrainingArguments")],
)  # fmt: skip
def test_a_name_that_is_no_setting_here_comes_with_its_remedy(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_assignments([f"{name}=1"])
    removed = {field.name for field in dataclasses.fields(llm_toys.transformers.TrainingArguments)} & INSTEAD.keys()
    assert not removed


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token"])
def test_a_token_is_no_setting_and_is_not_shown(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignments([f"{name}=hunter2222"])
    assert "hunter2222" not in str(caught.value) and "HF_TOKEN" in str(caught.value)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ([1], r"config.json: quantization_config is \[1\]"),
        ({"quant_method": "exl2"}, r"quantized \(exl2\), which transformers does not support"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            r"quantized \(bitsandbytes\), but its files hold plain",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            r"quantized \(bitsandbytes\), but its files hold plain",
        ),
        ({"quant_method": "gptq", "bits": 4}, r"Its weights are quantized \(gptq\): install the package"),
        ({}, r"quantized \(by no named method\)"),
    ],
)
def test_weights_that_are_not_quantized_as_the_configuration_says_are_named(quantization, words, base):
    if quantization and "load_in_4bit" in quantization:
        pytest.importorskip("bitsandbytes")
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": quantization}))
    last = models.open_tokenizer if isinstance(quantization, list) else models.open_body
    for opener in (models.open_model, last):
        with pytest.raises(CheckpointError, match=words):
            opener(str(base))


def test_random_weights_are_not_quantized(base):
    """Or the model that they are trained to could not be opened."""
    file = base / "config.json"
    gptq = {"quant_method": "gptq", "bits": 4}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": gptq}))
    assert "quantization_config" not in models.open_model(f"config:{base}").config.to_dict()


def test_a_folder_of_save_to_disk_is_read_split_by_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    one, two = (datasets.Dataset.from_list(llm_toys.questions(n)) for n in (3, 2))
    datasets.DatasetDict({"train_sft": one, "gold": two}).save_to_disk(tmp_path / "several")
    one.save_to_disk(tmp_path / "one")
    read = question_files.read_rows
    assert read(f"hf:{tmp_path}/several::gold").rows == llm_toys.questions(2)
    assert read(f"hf:{tmp_path}/several:default:train_sft").rows == read(f"hf:{tmp_path}/one").rows
    for place, words in (
        ("several", "has the splits train_sft, gold, but no 'train': name one as hf:.*several::train_sft"),
        ("several:main:gold", "no configuration 'main'"),
        ("one::gold", "saved as one dataset and has no split 'gold'"),
        ("several::gold[:1]", "save that part"),
    ):
        with pytest.raises(DataError, match=words):
            read(f"hf:{tmp_path}/{place}")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"cut")
    with pytest.raises(DataError, match=r"cannot be loaded: .* empty or damaged"):
        read(f"hf:{tmp_path}/one")


def test_files_and_folders_say_how_they_are_named(tmp_path):
    pytest.importorskip("datasets")
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in llm_toys.questions(3)))
    for data, words in ((tmp_path, f"name a file in it, or use hf:{tmp_path}"), (f"hf:{file}", f"write {file}.$")):
        with pytest.raises(DataError, match=words):
            question_files.read_rows(str(data))


def test_a_part_of_a_split_reaches_the_library(monkeypatch):
    datasets = pytest.importorskip("datasets")
    called = []
    monkeypatch.setattr(datasets, "load_dataset", lambda place, /, **options: called.append((place, options)) or [])
    with pytest.raises(DataError, match="is empty"):
        question_files.read_rows("hf:someone/something:main:train[:5]")
    assert (called[0][0], called[0][1]["name"], called[0][1]["split"]) == ("someone/something", "main", "train[:5]")


def test_a_conversation_that_a_template_does_not_take_is_named_by_its_row():
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = question_files.Rows([{"messages": turn}, {"messages": turn * 2}], "x.jsonl", "")
    asked = question_files.exchanges(rows, ("messages",))
    with pytest.raises(DataError, match="row 2: A conversation of user, assistant, user before the answer needs"):
        make_examples(asked, template="plain", tokenizer=llm_toys.tokenizer(), max_length=99)
