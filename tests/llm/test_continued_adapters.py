"""Adapters that are trained further, against peft and transformers, and folders that hold none of that kind."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from matrix_ssl.errors import CheckpointError, ConfigError, MatrixSSLError
from matrix_ssl.llm import models
from matrix_ssl.runs.files import read_json, read_lines
from tests.llm.test_finetune import command, llm, sets, short, stop_and_resume
from tests.support import llm_toys

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def adapter(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter that a run has learned."""
    out = tmp_path_factory.mktemp("first") / "run"
    command(*short(base, data, out, *sets("lora=2", "lora_alpha=12", "lora_targets=q_proj,down_proj", "max_steps=3")))
    return out / "model"


@pytest.fixture
def changed(adapter: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def test_it_is_trained_as_peft_and_transformers_train_it(adapter, base, data, tmp_path, capfd):
    plain = sets("objective.weight=0", "optim=sgd", "learning_rate=0.5", "lr_scheduler_type=constant", "max_steps=3",
                 "warmup_steps=0", "train_sampling_strategy=sequential")  # fmt: skip
    out = tmp_path / "run"
    command(*short(adapter, data, out, *plain))
    assert "LoRA of rank 2, alpha 12 on down_proj, q_proj;" in " ".join(capfd.readouterr().err.split())

    model = peft.PeftModel.from_pretrained(llm_toys.llama(), str(adapter), is_trainable=True)
    tokenizer, rows = llm_toys.tokenizer(), []
    for row in llm_toys.questions(24):
        asked, answer = (tokenizer(text)["input_ids"] for text in (row["question"] + "\n", row["answer"] + "</s>"))
        rows.append({"input_ids": asked + answer, "labels": [-100] * len(asked) + answer})
    trainer = transformers.Trainer(
        model=model, train_dataset=rows, data_collator=llm_toys.collate,
        args=llm_toys.arguments(tmp_path, max_steps=3, per_device_train_batch_size=4, max_grad_norm=1.0),
    )  # fmt: skip
    trainer.train()
    expected, found = peft.get_peft_model_state_dict(model), load_file(out / "model" / WEIGHTS)
    before = load_file(adapter / WEIGHTS)
    assert found.keys() == expected.keys() == before.keys()
    for name, matrix in found.items():
        torch.testing.assert_close(matrix, expected[name], rtol=1e-4, atol=1e-6)
    assert any((found[name] - before[name]).abs().max() > 1e-3 for name in found)

    result, stored = read_json(out / "finetune.json"), read_json(out / "model" / "adapter_config.json")
    assert result["parameters_trained"] == sum(matrix.numel() for matrix in found.values())
    assert stored["base_model_name_or_path"] == str(base.resolve())
    assert (stored["r"], stored["lora_alpha"], set(stored["target_modules"])) == (2, 12, {"q_proj", "down_proj"})
    kept = {key: result["settings"][key] for key in ("model", "lora", "lora_alpha", "lora_targets")}
    assert kept == {"model": str(adapter), "lora": 2, "lora_alpha": 12, "lora_targets": ["down_proj", "q_proj"]}


def test_it_resumes_is_scored_merged_and_trained_once_more(adapter, data, tmp_path, capfd):
    command(*short(adapter, data, tmp_path / "whole", *sets("packing=true")))
    out = tmp_path / "stopped"
    stop_and_resume(short(adapter, data, out, *sets("packing=true")), at=3)
    assert "Resuming after step 3" in capfd.readouterr().err
    one, other = (load_file(run / "model" / WEIGHTS) for run in (tmp_path / "whole", out))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    llm("score", "--model", out, "--task", "exact", "--data", data, "--limit", 2, "--max-new-tokens", 4)
    llm("merge", "--model", out, "--out", tmp_path / "merged")
    ids = torch.arange(8).unsqueeze(0)
    merged, adapted = models.open_model(str(tmp_path / "merged")), models.open_model(str(out / "model"), adapter=True)
    torch.testing.assert_close(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    command(*short(out, data, tmp_path / "further", *sets("max_steps=1")))  # by the folder of the run
    (first,) = read_lines(tmp_path / "further" / "metrics.jsonl")
    assert first["ce"] < read_lines(tmp_path / "whole" / "metrics.jsonl")[0]["ce"]


def test_settings_are_those_of_the_adapter(adapter, data, tmp_path):
    same = sets("lora=2", "lora_alpha=12", "lora_targets=q_proj,down_proj", "max_steps=1")
    command(*short(adapter, data, tmp_path / "run", *same))
    for assignment, words in (
        ("lora=4", "lora differs from that of the adapter in .*, which is 2: remove the setting, or merge"),
        ("lora_alpha=4", "lora_alpha differs .* which is 12"),
        ("lora_dropout=0.5", "lora_dropout differs .* which is 0"),
        ("lora_targets=q_proj", "lora_targets differs .* which is down_proj,q_proj"),
    ):
        with pytest.raises(ConfigError, match=words):
            command(*short(adapter, data, tmp_path / "refused", "--set", assignment))
    assert not (tmp_path / "refused").exists()


def test_four_bits_below_an_adapter_that_is_trained_further(adapter, data, tmp_path):
    pytest.importorskip("bitsandbytes")
    command(*short(adapter, data, tmp_path / "run", "--load-in-4bit", *sets("max_steps=1", "packing=true")))
    assert load_file(tmp_path / "run" / "model" / WEIGHTS).keys() == load_file(adapter / WEIGHTS).keys()


def test_the_name_of_an_adapter_on_the_hub_is_refused(adapter, base, data, tmp_path, monkeypatch):
    """Libraries open its model, which was then trained or measured without the adapter."""
    cache, commit = tmp_path / "cache" / "models--org--adapter", "0" * 40
    shutil.copytree(adapter, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    text = tmp_path / "text.txt"
    text.write_text("Ann has pens.")
    plain, name = ("--template", "plain"), ("--model", "org/adapter")
    for words in (
        ("finetune", *name, "--data", data, *plain),
        ("merge", *name),
        ("generate", *name, "--prompt", "How many?", *plain),
        ("score", *name, "--task", "exact", "--data", data, *plain),
        ("diagnose", *name, "--text", text),
        ("diagnose", "--model", base, "--reference", "org/adapter", "--text", text),
    ):
        message = "org/adapter is an adapter on the hub: download it, by hf download org/adapter --local-dir FOLDER"
        with pytest.raises(ConfigError, match=message):
            llm(*words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_in_front_of_its_model_is_not_evaluated(base, tmp_path):
    llm_toys.tokenizer().save_pretrained(tmp_path)
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(models.open_model(str(base)), prompt).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="an adapter of the kind PROMPT_TUNING, which is not in the layers of its"):
        models.open_model(str(tmp_path), adapter=True)


def test_the_model_below_an_adapter_is_whole(base, changed, data, tmp_path):
    """Scores were once those of random weights in the place of the tensors that it lacks."""
    shutil.copytree(base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    config = read_json(changed / "adapter_config.json") | {"base_model_name_or_path": str(tmp_path / "base")}
    (changed / "adapter_config.json").write_text(json.dumps(config))
    words = r"lacks 1 tensor of the model, such as model\.layers\.1\.mlp\.up_proj"
    for others in (("generate", "--prompt", "How many?"), ("score", "--task", "exact", "--data", data)):
        with pytest.raises(CheckpointError, match=words):
            llm(*others, "--template", "plain", "--model", changed, "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("fault", ["kind", "description", "rank", "base", "missing", "pickled", "matrix", "bytes"])
def test_a_folder_without_adapters_of_low_rank_is_refused(fault, changed, data, tmp_path):
    """Also where it is merged or evaluated; random numbers once stood for what the files lack, with only a warning."""
    file, config, weights = changed / WEIGHTS, changed / "adapter_config.json", load_file(changed / WEIGHTS)
    words = {
        "kind": "holds an adapter of the kind IA3, but only those of low rank",
        "description": "adapter_config.json does not describe adapters of low rank: copy the folder again",
        "rank": "adapter_config.json does not describe adapters of low rank: copy the folder again",
        "base": "is an adapter to the model /nowhere, which is not there",
        "missing": "holds no adapter_model.safetensors: copy it there; pickled weights are never loaded",
        "pickled": "holds no adapter_model.safetensors: copy it there; pickled weights are never loaded",
        "matrix": "cannot be loaded: Found missing adapter keys",
        "bytes": "The adapter in .* cannot be loaded",
    }[fault]
    described = {"kind": {"peft_type": "IA3"}, "description": {"r": None}, "rank": {"r": 0},
                 "base": {"base_model_name_or_path": "/nowhere"}}  # fmt: skip
    if fault in described:
        config.write_text(json.dumps(read_json(config) | described[fault]))
    elif fault == "matrix":
        del weights[next(name for name in weights if "lora_B" in name)]
        save_file(weights, file)
    elif fault == "bytes":
        file.write_bytes(file.read_bytes()[:100])
    else:
        file.unlink()
    if fault == "pickled":
        torch.save(weights, changed / "adapter_model.bin")
    with pytest.raises(MatrixSSLError, match=words):
        command(*short(changed, data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    if fault in ("missing", "pickled", "matrix", "bytes"):
        with pytest.raises(CheckpointError, match=words):
            llm("merge", "--model", changed, "--out", tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        with pytest.raises(CheckpointError, match=words):
            models.open_model(str(changed), adapter=True)
