"""Fine-tuning from a file to a model: what is learned, what is written, what is refused, and going on after a stop."""

import csv
import dataclasses
import gzip
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from matrix_ssl.cli import main
from matrix_ssl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MatrixSSLError,
    MissingExtra,
    RunFolderError,
    import_extra,
)
from matrix_ssl.llm import MatrixTrainer, Objective, merging, models
from matrix_ssl.llm.adapters import Adapters, add_lora
from matrix_ssl.llm.data import examples, question_files, templates
from matrix_ssl.llm.data.templates import Exchange
from matrix_ssl.llm.finetune.arguments import evaluation_arguments
from matrix_ssl.llm.finetune.settings import parse_assignments
from matrix_ssl.llm.finetune.trainer import Recorder
from matrix_ssl.llm.tiny import tiny_llama
from matrix_ssl.runs.files import read_json, read_lines
from matrix_ssl.runs.signals import Interrupted
from tests.support import llm_toys

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def command(*words: Any) -> None:
    """``matrix-ssl llm finetune`` in this process; its errors are raised."""
    main.commands.main(["llm", "finetune", "--device", "cpu", *map(str, words)], standalone_mode=False)


def sets(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def short(base: Path, data: Path, out: Path, *words: Any) -> list[Any]:
    """The words of a run of 6 steps that saves a checkpoint after every second one."""
    return ["--model", base, "--data", data, "--template", "plain", "--out", out, *sets("epochs=1", "batch_size=4",
            "learning_rate=0.01", "save_strategy=steps", "save_steps=2"), *words]  # fmt: skip


def stop_and_resume(words: list[Any], *, at: int) -> None:
    """The command, which a signal stops after step ``at``, and once more to its end."""
    begin = Recorder.on_step_begin

    def interrupt(self: Recorder, args: Any, state: Any, control: Any, **more: Any) -> None:
        begin(self, args, state, control, **more)
        if state.global_step == at - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "on_step_begin", interrupt)
        with pytest.raises(Interrupted):
            command(*words)
    command(*words)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    command(*short(base, data, out))
    return out


# what is learned


@pytest.mark.parametrize("template", ["plain", "metamath", "chat"])
def test_answers_and_the_end_are_learned_and_prompts_are_not(template):
    tokenizer = llm_toys.tokenizer()
    tokenizer.chat_template = CHATML
    row = Exchange.of("2 + 2?", "It is 4.")
    found = examples.make_examples([row], template=template, tokenizer=tokenizer, max_length=500)
    (example,) = ({key: torch.tensor(found[i][key]) for key in found[i]} for i in range(len(found)))
    learned = example["labels"] != examples.IGNORED
    assert (
        tokenizer.decode(example["input_ids"][~learned])
        == {
            "plain": "2 + 2?\n",
            "metamath": "Below is an instruction that describes a task. Write a response that appropriately completes "
            "the request.\n\n### Instruction:\n2 + 2?\n\n### Response: Let's think step by step.",
            "chat": "<|user|>2 + 2?</s>\n<|assistant|>",
        }[template]
    )
    assert tokenizer.decode(example["labels"][learned]) == "It is 4.</s>" + "\n" * (template == "chat")
    assert torch.equal(example["labels"][learned], example["input_ids"][learned])
    assert found.learned == learned.sum()


def test_a_first_token_is_put_before_prompts_once():
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=first_token_tokenizer(), eos_token="</s>", bos_token="<s>"
    )
    found = examples.make_examples([Exchange.of("a", "b")], template="plain", tokenizer=tokenizer, max_length=9)
    assert tokenizer.decode(found[0]["input_ids"]) == "<s>a\nb</s>"


def first_token_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_str(llm_toys.tokenizer().backend_tokenizer.to_str())
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def test_long_sequences_are_cut_and_prompts_without_answer_left_out():
    rows = [Exchange.of("a" * n, "b" * 10) for n in (1, 5, 30)]
    found = examples.make_examples(rows, template="plain", tokenizer=llm_toys.tokenizer(), max_length=12)
    lengths = [len(found[i]["input_ids"]) for i in range(len(found))]
    assert max(lengths) <= 12 and found.dropped >= 1 and found.cut >= 1
    assert len(found) + found.dropped == 3
    with pytest.raises(DataError, match="All 3 rows have a prompt of at least max_length=2 tokens"):
        examples.make_examples(rows, template="plain", tokenizer=llm_toys.tokenizer(), max_length=2)


def test_batches_are_filled_with_what_is_neither_seen_nor_learned():
    rows = [Exchange.of("a", "b"), Exchange.of("a", "b c d e")]
    found = examples.make_examples(rows, template="plain", tokenizer=llm_toys.tokenizer(), max_length=50)
    tokenizer = llm_toys.tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = None, "left"
    batch = examples.collator(tokenizer)([found[0], found[1]])
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    lengths = [len(found[i]["input_ids"]) for i in range(2)]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["input_ids"][0, lengths[0] :] == tokenizer.eos_token_id).all()
    assert (batch["labels"][0, lengths[0] :] == examples.IGNORED).all()
    for key in ("input_ids", "labels"):
        assert [batch[key][i, : lengths[i]].tolist() for i in range(2)] == [found[i][key] for i in range(2)]
    assert (tokenizer.pad_token, tokenizer.padding_side) == (None, "left")


def test_conversations_keep_earlier_turns_as_prompt():
    tokenizer = llm_toys.tokenizer()
    tokenizer.chat_template = CHATML
    messages = [{"role": r, "content": c} for r, c in (("user", "1"), ("assistant", "2"), ("user", "3"))]
    row = Exchange(messages, "4")
    assert templates.prompt(row, "chat", tokenizer) == "<|user|>1</s>\n<|assistant|>2</s>\n<|user|>3</s>\n<|assistant|>"
    assert templates.answer(row, "chat", tokenizer) == "4</s>\n"
    with pytest.raises(DataError, match="user, assistant, user before the answer needs template=chat"):
        templates.prompt(row, "plain", tokenizer)
    tokenizer.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(DataError, match="changes the prompt once an answer follows"):
        templates.answer(row, "chat", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="has no chat template"):
        templates.check_template("chat", tokenizer)


# files


def test_all_forms_of_a_file_hold_the_same_rows(tmp_path):
    rows = [{"query": "1 + 1", "response": "2"}, {"query": "ü", "response": "\u2028"}]
    lines = write(tmp_path / "a.jsonl", rows)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    listed = tmp_path / "a.json"
    listed.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    for path in (lines, packed, listed):
        found = question_files.read_rows(str(path))
        assert found.rows == rows
        assert question_files.find_columns(found) == ("query", "response")


def test_columns_are_found_or_named(tmp_path):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = question_files.read_rows(str(write(tmp_path / "a.jsonl", [{"messages": chat, "x": "1", "y": "2"}])))
    assert question_files.exchanges(rows, question_files.find_columns(rows)) == [Exchange(chat[:1], "b")]
    assert question_files.exchanges(rows, question_files.find_columns(rows, ("x", "y"))) == [Exchange.of("1", "2")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"question": "a", "answer": "b"}\n{"question": "\xff"}\n', "line 2: not UTF-8 at byte 14"),
        (b'{"question": "a", "answer": "b"}\n\n{"question": \n', "line 3: not JSON"),
        (b"[1]\n", "line 1: expected an object with columns, not list"),
        (b'{"text": "a"}\n', "columns text, but none of question/answer"),
        (b'{"question": "a", "answer": ""}\n', "row 1: answer is ''"),
        (b'{"question": "a", "answer": "b"}\n{"question": "a"}\n', "row 2: answer is None"),
        (b'{"messages": [{"role": "user", "content": "a"}]}\n', "row 1: messages ends with a message of 'user'"),
    ],
)
def test_damaged_files_are_refused_with_the_place(content, words, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        rows = question_files.read_rows(str(path))
        question_files.exchanges(rows, question_files.find_columns(rows))


def test_missing_files_and_columns_are_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        question_files.read_rows(str(tmp_path / "a.jsonl"))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}" * 100)[:20])
    with pytest.raises(DataError, match="cannot be read"):
        question_files.read_rows(str(packed))
    rows = question_files.read_rows(str(write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}])))
    with pytest.raises(DataError, match=r"no column 'anser'\. Did you mean 'answer'"):
        question_files.find_columns(rows, ("question", "anser"))
    with pytest.raises(DataError, match="a question and an answer"):
        question_files.find_columns(rows, ("question", "answer", "answer"))


# models


def test_folders_that_hold_no_model_are_refused(base, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        models.open_model(str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        models.open_model(str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text((base / "config.json").read_text())
    with pytest.raises(CheckpointError, match="has no weights in safetensors"):
        models.open_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        models.open_tokenizer(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        models.open_model(str(tmp_path))
    tensors = load_file(base / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "layers.1.mlp" not in name}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(CheckpointError, match=r"lacks 3 tensors of the model, such as model\.layers\.1\.mlp"):
        models.open_model(str(tmp_path))
    config.write_text('{"model_type": "no such model"}')
    with pytest.raises(CheckpointError, match="not the configuration of a model"):
        models.open_model(f"config:{config}")


@pytest.mark.parametrize(("module", "package"), [("trainer", "transformers"), ("sft", "trl")])
def test_a_missing_package_is_named_with_its_extra(module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"matrix_ssl.llm.finetune.{module}", raising=False)
    with pytest.raises(MissingExtra, match=rf"'{package}' is not installed: .*pip install -e '\.\[llm\]'"):
        importlib.import_module(f"matrix_ssl.llm.finetune.{module}")


@pytest.mark.parametrize(
    ("metric", "higher"), [(None, False), ("ce", False), ("eval_mce", False), ("mean_token_accuracy", True)]
)
def test_the_best_checkpoint_has_the_lowest_loss_or_the_highest_accuracy(metric, higher):
    chosen = {} if metric is None else {"metric_for_best_model": metric}
    values = evaluation_arguments(chosen, save_strategy="epoch", batch_size=2)
    assert values["greater_is_better"] is higher
    assert values["metric_for_best_model"] == (metric or "eval_loss")


def test_a_package_that_lacks_its_own_dependency_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "brokenpackage.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    expected = r"'brokenpackage' cannot be imported \(No module named 'no_such_dependency'\): .*'\.\[llm\]'"
    with pytest.raises(MissingExtra, match=expected):
        import_extra("brokenpackage", extra="llm")


def test_random_weights_come_from_a_configuration_and_a_seed(base):
    one, same, other = (models.open_model(f"config:{base}", seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_tokens_without_embedding_and_too_many_positions_are_refused(base, data, tmp_path):
    model = llm_toys.llama()
    model.resize_token_embeddings(260)
    model.save_pretrained(tmp_path / "small")
    llm_toys.tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(ConfigError, match=r"exceeds the 260 embeddings of .*small; tokenizer and model do not match"):
        command(*short(tmp_path / "small", data, tmp_path / "run"))
    long = write(tmp_path / "long.jsonl", [{"question": "a", "answer": "xyz" * 600}])
    with pytest.raises(ConfigError, match="512 positions: set max_length=512"):
        command(*short(base, long, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_context_of_a_language_model_inside_a_larger_one():
    config = transformers.Gemma3Config(text_config={"max_position_embeddings": 77})
    assert models.context_length(types.SimpleNamespace(config=config)) == 77
    assert models.context_length(llm_toys.llama()) == 512


# settings


def test_further_arguments_have_the_names_and_types_of_transformers():
    found = parse_assignments(
        ("weight_decay=0.1", "bf16=true", "max_steps=7", "lr_scheduler_type=linear", 'optim_args=a=1,b=2',
         'fsdp_config={"version": 2}', "tf32=none", "fsdp=true")
    )  # fmt: skip
    assert found == {"weight_decay": 0.1, "bf16": True, "max_steps": 7, "lr_scheduler_type": "linear",
                     "optim_args": "a=1,b=2", "fsdp_config": {"version": 2}, "tf32": None, "fsdp": True}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "weight_decy=0.1"], "Unknown setting 'weight_decy'. Did you mean 'weight_decay'"),
        (["--set", "max_lenght=9"], "Unknown setting 'max_lenght'. Did you mean 'max_length'"),
        (["--set", "objective.rigde=9"], "Unknown setting 'objective.rigde'. Did you mean 'objective.ridge'"),
        (["--set", "arguments=9"], "Unknown setting 'arguments'"),
        (["--set", "weight_decay"], "write key=value"),
        (["--set", "weight_decay=much"], "weight_decay=much: expected a finite number"),
        (["--set", "fsdp_config={"], "fsdp_config={: expected a JSON object"),
        (["--set", "num_train_epochs=1"], "num_train_epochs=1 cannot be set: set epochs"),
        (["--set", "save_strategy=sometimes"], "transformers rejects"),
        (["--set", "label_smoothing_factor=0.1"], "label_smoothing_factor=0.1 is not part of this loss"),
        (sets("eval_strategy=epoch"), "eval_strategy=epoch needs rows that are not learned: give --eval-data"),
        (sets("held_out=0.2", "eval_strategy=no"), "eval_strategy=no would not measure"),
        (sets("held_out=0.2", "save_strategy=steps", "eval_strategy=epoch"), "set only one of them, or both to the"),
        (
            sets("held_out=0.2", "eval_steps=1"),
            "save_steps=2 conflicts with eval_steps=1: .* both to the same value, or",
        ),
        (sets("held_out=0.2", "metric_for_best_model=accuracy"), "expected one of loss, ce, mce"),
        (sets("adam_beta1=1.5"), "adam_beta1=1.5: expected a number of at least 0 and below 1"),
        (sets("max_steps=0"), "max_steps=0: expected at least one step"),
        (sets("log_level=loud"), "log_level=loud: expected one of debug"),
        (sets("dataloader_persistent_workers=true"), "set dataloader_num_workers=1 or more"),
        (sets("dataloader_drop_last=true", "batch_size=64"), "a batch has 64 sequences, and there are 24"),
        (sets("lr_scheduler_type=warmup_stable_decay"), "num_decay_steps'; correct lr_scheduler_kwargs"),
        (sets('activation_checkpointing_kwargs={"foo":1}'), "foo is not one of context_fn"),
        (sets("objective.ridge=0"), "objective.ridge=0: expected a finite number above 0"),
        (sets("objective.form=lanczos", "objective.steps=40"), "steps=40: expected 1 to 32 Lanczos steps"),
        (sets("batch_size=5", "gradient_accumulation=2"), "batch_size=5 is not divisible"),
        (sets("epochs=0"), "epochs=0: expected a finite number above 0"),
        (sets("lora=-1"), "lora=-1: expected an integer of at least 0"),
        (["--load-in-4bit"], "set lora, for example lora=16"),
        (sets("lora_alpha=8"), "lora_alpha is of adapters, and there are none: set their rank, for example lora=16"),
        (sets("lora=2", "lora_dropout=1"), "lora_dropout=1: expected"),
        (sets("lora=2", "lora_targets=query"), "lora_targets=query: .* it has q_proj, k_proj, v_proj, o_proj, gate"),
        (sets("lora=65", "lora_targets=k_proj"), "lora=65: no linear layer has a rank above 32"),
        (["--columns", "question,anser"], "no column 'anser'"),
    ],
)
def test_wrong_settings_are_refused_and_leave_no_folder(words, message, base, data, tmp_path):
    with pytest.raises(MatrixSSLError, match=message):
        command(*short(base, data, tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


# runs


def test_a_run_holds_model_and_record(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {".lock", "config.json", "environment.json", "metrics.jsonl", "finetune.json", "model"}
    result = read_json(finished / "finetune.json")
    assert (result["finished"], result["steps"]) == (True, 6)
    assert result["counts"]["rows"] == result["counts"]["examples"] == 24
    assert result["environment"]["transformers"] == transformers.__version__
    assert result["settings"]["objective"] == dataclasses.asdict(Objective())
    assert result["parameters"] == result["parameters_trained"] == sum(p.numel() for p in llm_toys.llama().parameters())
    lines = read_lines(finished / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert result["losses"] == {"first": lines[0], "last": lines[-1]}
    assert lines[-1]["ce"] < lines[0]["ce"]
    model = transformers.AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "model")
    assert tokenizer.get_vocab() == llm_toys.tokenizer().get_vocab()
    assert not torch.equal(model.lm_head.weight, llm_toys.llama().lm_head.weight)
    assert not list((finished / "model").glob("*.bin"))


def test_the_same_command_again_says_complete_and_another_one_is_refused(finished, base, data, capfd):
    before = (finished / "finetune.json").read_bytes()
    command(*short(base, data, finished))
    assert "is complete" in capfd.readouterr().err
    assert (finished / "finetune.json").read_bytes() == before
    with pytest.raises(RunFolderError, match=r"learning_rate: 0.01 -> 0.02.*choose another folder"):
        command(*short(base, data, finished, *sets("learning_rate=0.02")))


@pytest.mark.parametrize("stop", ["signal", "death"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(stop, finished, base, data, tmp_path, monkeypatch, capfd):
    """A signal in the third step, which ends it after a checkpoint; or an end without notice in the fourth."""
    write_line, steps = Recorder.on_log, iter(range(1, 9))

    def interrupt(self: Recorder, *args: Any, **kwargs: Any) -> None:
        write_line(self, *args, **kwargs)
        step = next(steps)
        if stop == "signal" and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # noticed at the end of the third step
        if stop == "death" and step == 3:
            raise ZeroDivisionError

    monkeypatch.setattr(Recorder, "on_log", interrupt)
    out = tmp_path / "run"
    with pytest.raises(Interrupted if stop == "signal" else ZeroDivisionError):
        command(*short(base, data, out))
    (out / "checkpoints" / "checkpoint-5").mkdir()  # what a death while writing leaves
    monkeypatch.undo()
    command(*short(base, data, out))
    assert f"Resuming after step {3 if stop == 'signal' else 2}" in capfd.readouterr().err
    assert read_lines(out / "metrics.jsonl") == read_lines(finished / "metrics.jsonl")
    for name, tensor in weights(finished).items():
        assert torch.equal(weights(out)[name], tensor), name
    assert not (out / "checkpoints").exists()


def test_parts_of_a_batch_give_the_same_run(finished, base, data, tmp_path):
    out = tmp_path / "run"
    command(*short(base, data, out, *sets("gradient_accumulation=2")))
    for line, other in zip(read_lines(out / "metrics.jsonl"), read_lines(finished / "metrics.jsonl"),
                           strict=True):  # fmt: skip
        assert line["ce"] == pytest.approx(other["ce"], rel=1e-3)  # AdamW magnifies rounding of small gradients


def test_adapters_are_saved_and_open_on_their_model(base, data, tmp_path):
    out = tmp_path / "run"
    command(*short(base, data, out, *sets("lora=2", "objective.weight=0", "max_steps=2")))
    result = read_json(out / "finetune.json")
    assert 0 < result["parameters_trained"] < result["parameters"] / 5
    last = result["losses"]["last"]
    assert last["loss"] == pytest.approx(last["ce"], rel=1e-6) and last["mce"] > 0
    assert (out / "model" / "adapter_model.safetensors").exists()
    opened = models.open_model(str(out / "model"), adapter=True)
    ids = torch.arange(8).unsqueeze(0)
    assert (opened(input_ids=ids).logits - llm_toys.llama().eval()(input_ids=ids).logits).abs().max() > 1e-6
    with pytest.raises(ConfigError, match="holds an adapter: merge"):
        models.open_model(str(out / "model"))
    with pytest.raises(ConfigError, match="random weights"):
        command(*short(Path(f"config:{base}"), data, tmp_path / "other", *sets("lora=2")))


def test_the_scale_the_places_and_the_dropout_of_adapters(base, data, tmp_path):
    """The saved matrices, added to the weights by hand as LoRA defines it, give the logits of the model."""
    out = tmp_path / "run"
    chosen = sets("lora=3", "lora_alpha=12", "lora_targets=q_proj,mlp.down_proj", "max_steps=3", "held_out=0.25")
    command(*short(base, data, out, *chosen, "--set", "eval_steps=2"))
    matrices = load_file(out / "model" / "adapter_model.safetensors")
    layers = {name.rpartition(".lora_")[0].removeprefix("base_model.model.") for name in matrices}
    assert {layer.rpartition(".")[2] for layer in layers} == {"q_proj", "down_proj"} and len(layers) == 4
    whole = llm_toys.llama().eval()
    with torch.no_grad():
        for layer in layers:
            a, b = (matrices[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
            whole.get_submodule(layer).weight += 12 / 3 * b @ a
    opened, ids = models.open_model(str(out / "model"), adapter=True), torch.arange(8).unsqueeze(0)
    torch.testing.assert_close(opened(input_ids=ids).logits, whole(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    command(*short(base, data, tmp_path / "dropped", *chosen, "--set", "eval_steps=2", "--set", "lora_dropout=0.5"))
    dropped = load_file(tmp_path / "dropped" / "model" / "adapter_model.safetensors")
    assert any((dropped[name] - matrices[name]).abs().max() > 1e-4 for name in matrices)
    (first, *_), (other, *_) = (
        [line for line in read_lines(run / "metrics.jsonl") if "eval_loss" in line]
        for run in (out, tmp_path / "dropped")
    )
    assert first["eval_loss"] == pytest.approx(other["eval_loss"], rel=1e-6)  # nothing is dropped when it is measured


def llm(*words: Any) -> None:
    main.commands.main(["llm", *map(str, words)], standalone_mode=False)


def test_adapters_are_merged_into_their_model(base, data, tmp_path, capsys):
    """In float32, and into weights that are stored in bfloat16; the result is trained further."""
    out, ids = tmp_path / "run", torch.arange(8).unsqueeze(0)
    command(*short(base, data, out, *sets("lora=2", "lora_alpha=64", "max_steps=3")))
    llm("merge", "--model", out, "--out", tmp_path / "merged")
    assert "Merged, in float32." in capsys.readouterr().err
    merged, adapted = models.open_model(str(tmp_path / "merged")), models.open_model(str(out / "model"), adapter=True)
    torch.testing.assert_close(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert (merged(input_ids=ids).logits - llm_toys.llama().eval()(input_ids=ids).logits).abs().max() > 1e-3
    command(*short(tmp_path / "merged", data, tmp_path / "further", *sets("max_steps=1")))

    half = tmp_path / "half"
    shutil.copytree(base, half)
    llm_toys.llama().bfloat16().save_pretrained(half)
    shutil.copytree(out / "model", tmp_path / "adapter")
    settings = read_json(out / "model" / "adapter_config.json") | {"base_model_name_or_path": str(half)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    llm("merge", "--model", tmp_path / "adapter", "--out", tmp_path / "half-merged")
    tensors = load_file(tmp_path / "half-merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(tensors[name].float(), merged.state_dict()[name], rtol=0.02, atol=0.01)


def test_a_second_merge_into_the_same_folder_is_refused(base, data, tmp_path, monkeypatch):
    out, merged, refused, opened = tmp_path / "run", tmp_path / "merged", [], merging.open_model
    command(*short(base, data, out, *sets("lora=2", "max_steps=1")))
    (tmp_path / ".merged.tmp" / "model").mkdir(parents=True)
    (tmp_path / ".merged.tmp" / "model" / "left").write_text("by a process that was killed")

    def during(place):
        with monkeypatch.context() as patch, ThreadPoolExecutor(1) as second:
            patch.setattr(merging, "open_model", opened)
            refused.append(second.submit(merging.merge, str(out), merged).exception())
        return opened(place)

    monkeypatch.setattr(merging, "open_model", during)
    merging.merge(str(out), merged)
    (error,) = refused
    assert isinstance(error, RunFolderError) and "merged.tmp is being written by another thread" in str(error)
    assert models.open_model(str(merged)) is not None and not (merged / "left").exists()
    assert not list(tmp_path.glob(".merged*"))


def test_what_cannot_be_merged_is_refused(base, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command(*short(base, data, out, *sets("lora=2", "max_steps=1")))
    with pytest.raises(ConfigError, match="holds no adapter, so there is nothing to merge"):
        llm("merge", "--model", base, "--out", tmp_path / "merged")
    with pytest.raises(RunFolderError, match="is not an empty folder"):
        llm("merge", "--model", out, "--out", base)
    with pytest.raises(CheckpointError, match="does not exist"):
        llm("merge", "--model", tmp_path / "absent", "--out", tmp_path / "merged")
    damaged = load_file(out / "model" / "adapter_model.safetensors")
    damaged[next(name for name in damaged if "lora_B" in name)][:] = math.nan
    shutil.copytree(out / "model", tmp_path / "damaged")
    save_file(damaged, tmp_path / "damaged" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        llm("merge", "--model", tmp_path / "damaged", "--out", tmp_path / "merged")

    def full(model, folder):
        folder.mkdir()
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(RunFolderError, match=r"Cannot write .*merged: No space left on device; free space there"):
        llm("merge", "--model", out, "--out", tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))


def test_an_adapter_of_quantized_weights_is_not_merged(base, data, tmp_path):
    """The sum was rounded to four bits, and the adapter then said to be damaged."""
    pytest.importorskip("bitsandbytes")
    command(*short(base, data, tmp_path / "run", *sets("lora=2", "max_steps=1")))
    models.open_model(str(base), four_bits_on=torch.device("cpu")).save_pretrained(tmp_path / "quantized")
    config = tmp_path / "run" / "model" / "adapter_config.json"
    values = read_json(config) | {"base_model_name_or_path": str(tmp_path / "quantized")}
    config.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"quantized, whose weights are quantized and cannot hold the sum: set base_"):
        llm("merge", "--model", tmp_path / "run" / "model", "--out", tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))


def test_metrics_go_to_loggers(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    words = short(base, data, out, *sets("held_out=0.25", "eval_steps=2"), "--logger", "csv", "--logger", "tensorboard")
    command(*words)
    said = capsys.readouterr().err
    assert f"Metrics as a table: {out / 'metrics.csv'}." in said and "TensorBoard events" in said
    lines = read_lines(out / "metrics.jsonl")
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [line["step"] for line in lines]
    for key in ("loss", "eval_ce"):
        assert [float(row[key]) for row in rows if row[key]] == [line[key] for line in lines if key in line]
    with pytest.raises(ConfigError, match="report_to=wandb cannot be set: use --logger"):
        command(*short(base, data, tmp_path / "other", "--set", "report_to=wandb"))


def test_adapters_on_four_bits_learn_and_the_weights_below_are_those_of_bitsandbytes(base, data, tmp_path):
    from bitsandbytes.functional import dequantize_4bit

    below, whole = models.open_model(str(base), four_bits_on=torch.device("cpu")), llm_toys.llama().eval()
    changed = 0
    with torch.no_grad():
        for name, parameter in below.named_parameters():
            if parameter.dtype == torch.uint8:
                whole.get_parameter(name).copy_(dequantize_4bit(parameter.data, parameter.quant_state))
                changed += 1
    assert changed == 14  # seven in each of two layers, and not the head
    ids = torch.arange(8).unsqueeze(0)
    torch.testing.assert_close(below(input_ids=ids).logits, whole(input_ids=ids).logits, rtol=1e-4, atol=1e-5)

    command(*short(base, data, tmp_path / "run", "--load-in-4bit", *sets("lora=2", "epochs=3")))
    result = read_json(tmp_path / "run" / "finetune.json")
    adapters = result["parameters_trained"]
    assert result["parameters"] == adapters + sum(p.numel() for p in whole.parameters())
    assert result["losses"]["last"]["ce"] < result["losses"]["first"]["ce"]
    saved = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == adapters
    models.open_model(str(tmp_path / "run" / "model"), adapter=True)


def test_an_evaluation_leaves_weights_in_four_bits_trainable(base, data, tmp_path):
    """On CPUs with AVX512-BF16, bitsandbytes rewrote them in a format through which no gradient flows."""
    wide = tmp_path / "wide"  # that format needs 64 columns
    tiny_llama(llm_toys.tokenizer(), d=64).save_pretrained(wide)
    llm_toys.tokenizer().save_pretrained(wide)
    below = add_lora(models.open_model(str(wide), four_bits_on=torch.device("cpu")), Adapters(2, 4.0), seed=0)
    trainer = MatrixTrainer(model=below, args=llm_toys.arguments(tmp_path), data_collator=llm_toys.collate)
    inputs = below.get_input_embeddings()(torch.arange(8).unsqueeze(0)).detach().requires_grad_()

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(below.train()(inputs_embeds=inputs).logits.square().sum(), inputs)[0]

    before = gradient()
    trainer.evaluate(llm_toys.sequences(4))
    torch.testing.assert_close(gradient(), before)
    command(*short(base, data, tmp_path / "run", "--load-in-4bit", *sets("lora=2", "held_out=0.25", "eval_steps=2")))


def test_four_bits_need_a_model_and_the_package(base, monkeypatch):
    with pytest.raises(ConfigError, match="random weights are trained whole"):
        models.open_model(f"config:{base}", four_bits_on=torch.device("cpu"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"'bitsandbytes' is not installed: .*pip install -e '\.\[qlora\]'"):
        models.open_model(str(base), four_bits_on=torch.device("cpu"))


def test_folders_of_other_things_are_left_alone(base, data, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunFolderError, match=r"is not empty and has no config\.json: choose another folder"):
        command(*short(base, data, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_what_a_kill_in_the_first_write_leaves_is_taken_up(base, data, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.ab12cd34.tmp").write_text('{"pl')
    command(*short(base, data, tmp_path, "--set", "max_steps=1"))
    assert (tmp_path / "finetune.json").exists() and not list(tmp_path.glob("*.tmp"))


def test_fresh_keeps_the_old_run(base, data, tmp_path):
    out = tmp_path / "run"
    command(*short(base, data, out, "--set", "max_steps=1"))
    command(*short(base, data, out, "--set", "max_steps=2", "--fresh"))
    assert read_json(out / "finetune.json")["steps"] == 2
    assert read_json(tmp_path / "run.1" / "finetune.json")["steps"] == 1


@pytest.mark.slow  # three processes that import transformers
def test_two_processes_give_the_run_of_one(finished, base, data, tmp_path):
    out = tmp_path / "run"
    words = short(base, data, out, "--device", "cpu")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(
        [*start, "-m", "matrix_ssl", "llm", "finetune", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert read_json(out / "finetune.json")["environment"]["processes"] == 2
    lines, expected = (read_lines(run / "metrics.jsonl") for run in (out, finished))
    assert [line["ce"] for line in lines] == pytest.approx([line["ce"] for line in expected], rel=1e-3)
    assert lines[0]["ce"] == pytest.approx(expected[0]["ce"], rel=1e-6)


def test_the_task_file_is_packaged():
    from matrix_ssl.llm.score import read_task

    source = Path(models.__file__).parent / "tasks" / "gsm8k.yaml"
    assert read_task() == yaml.safe_load(source.read_text("utf-8"))
    settings = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert '"tasks/*.yaml"' in settings
