"""Packed batches against the same examples one at a time, trl's packing, and models that mix the examples of a row."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn
from trl import pack_dataset

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.llm import MatrixTrainer
from matrix_ssl.llm.finetune.packing import best_fit, check_packing, pack
from matrix_ssl.runs.files import read_json, read_lines
from tests.llm.test_finetune import command, sets, short, stop_and_resume, write
from tests.llm.test_trainer import MATRIX, textbook
from tests.support import llm_toys

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
SIZE = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": None}  # fmt: skip
SMALL = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": None}
KEEP_APART = {
    "llama": transformers.LlamaConfig(**SIZE),
    "llama, cached": transformers.LlamaConfig(**SIZE, use_cache=True),
    "windows": transformers.MistralConfig(**SIZE, sliding_window=4),
    "full and windows, capped": transformers.Gemma2Config(
        **SIZE, head_dim=16, sliding_window=4, final_logit_softcapping=2.0
    ),
    "chunks": transformers.Llama4TextConfig(
        **SIZE, head_dim=16, intermediate_size_mlp=32, num_local_experts=2, attention_chunk_size=4
    ),
    "learned positions": transformers.GPT2Config(**SMALL),
    "biased head": transformers.PhiConfig(**SIZE),
    "experts": transformers.MixtralConfig(**SIZE, num_local_experts=3),
    "lengthened positions": transformers.LlamaConfig(
        **SIZE, max_position_embeddings=512,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 8},
    ),
}  # fmt: skip
MIX = {
    "no positions": (transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2), "no positions"),
    "no positions in the masks": (transformers.FalconConfig(**SIZE), "are not those of each alone"),
    "states": (transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2), "linear_attention"),
    "positions from 2": (
        transformers.RobertaConfig(**SIZE | {"pad_token_id": 1}, is_decoder=True),
        "are not those of each alone",
    ),
    "convolutions": (transformers.Lfm2Config(**SIZE, layer_types=["conv", "full_attention"]), "of the type conv"),
}


def made(config: Any, **options: str) -> Any:
    """A model with random weights, none of them zero, in float64."""
    torch.manual_seed(0)
    options["experts_implementation"] = "eager"  # in float64, too
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.double().eval()


def examples() -> list[dict[str, list[int]]]:
    """One of about 20 tokens, and eight shorter ones that fit into fewer rows of that length."""
    first, second, *rest = llm_toys.sequences(10)
    return [{key: first[key] + second[key] for key in first}, *rest]


def test_rows_are_filled_as_trl_fills_them():
    """Also by best-fit decreasing, from lengths alone."""
    for seed in range(20):
        rows = llm_toys.sequences(1 + 3 * seed, seed=seed)
        lengths = [len(row["input_ids"]) for row in rows]
        packed = pack_dataset(Dataset.from_list(rows), max(lengths), "bfd", {"keep_in_memory": True})
        found = best_fit(lengths)
        assert sorted(example for row in found for example in row) == list(range(len(rows)))
        assert [[lengths[example] for example in row] for row in found] == packed["seq_lengths"]


@pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, attention) for kind in KEEP_APART for attention in ("eager", "sdpa")
     if (attention == "eager" or "capped" not in kind)],  # transformers caps with eager alone
)  # fmt: skip
def test_loss_and_gradients_are_those_of_each_example_alone(kind, attention, tmp_path):
    model, rows = made(KEEP_APART[kind], attn_implementation=attention), examples()
    trainer = MatrixTrainer(model=model, args=llm_toys.arguments(tmp_path), matrix=MATRIX, packing=True)
    model.config.use_cache = bool(KEEP_APART[kind].use_cache)
    seen = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    trainer.compute_loss(model, llm_toys.collate(rows)).backward()
    hook.remove()
    assert seen[-1][0] < len(rows)
    assert trainer._form is not None  # the loss is fused with the head
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ce, mce = textbook(model, rows, MATRIX)
    (ce + MATRIX.weight * mce).backward()
    rounding = 1e-6 if attention == "eager" or kind == "chunks" else 1e-12  # a softmax or rotations in float32
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            error = (found[name] - parameter.grad).norm() / parameter.grad.norm()
            assert error < rounding, name


@pytest.mark.parametrize("fused", [True, False], ids=["fused head", "whole logits"])
def test_adapters_learn_the_same_from_packed_batches(fused, tmp_path, monkeypatch):
    def trained(packing: bool) -> Any:
        model = peft.get_peft_model(made(KEEP_APART["llama"]), peft.LoraConfig(r=2, target_modules="all-linear"))
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
        trainer = MatrixTrainer(
            model=model, args=llm_toys.arguments(tmp_path, learning_rate=0.1, max_steps=3), matrix=MATRIX,
            train_dataset=examples() * 2, data_collator=llm_toys.collate, packing=packing,
        )  # fmt: skip
        trainer.train()
        return trainer

    if not fused:
        monkeypatch.setattr("matrix_ssl.llm.finetune.trainer.find_form", lambda *_: (None, "of this test"))
    packed, padded = trained(True), trained(False)
    for name, parameter in packed.model.named_parameters():
        torch.testing.assert_close(parameter, padded.model.get_parameter(name), rtol=1e-7, atol=1e-9, msg=name)
    keys = ("loss", "ce", "mce", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm")
    for line, other in zip(packed.state.log_history[:3], padded.state.log_history[:3], strict=True):
        assert [line[key] for key in keys] == pytest.approx([other[key] for key in keys], rel=1e-6)


def test_measures_of_held_out_rows_and_logits_are_those_without_packing(tmp_path):
    model, rows = made(KEEP_APART["llama"]), examples()

    def trainer(packing: bool, **options: Any) -> MatrixTrainer:
        args = llm_toys.arguments(tmp_path, per_device_eval_batch_size=5)
        return MatrixTrainer(model=model, args=args, data_collator=llm_toys.collate, packing=packing, **options)

    found, expected = trainer(True).evaluate(rows), trainer(False).evaluate(rows)
    for key in ("eval_loss", "eval_ce", "eval_mce", "eval_entropy", "eval_mean_token_accuracy"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6), key
    shapes = []
    trainer(True, compute_metrics=lambda p: shapes.append(p.predictions.shape) or {}).evaluate(rows)
    assert shapes[0][0] == len(rows)  # one row of logits for each example


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_may_be_on_either_side(side):
    tokenizer = llm_toys.tokenizer()
    tokenizer.padding_side = side
    lengths = (7, 3, 4)
    batch = tokenizer.pad({"input_ids": [list(range(10 * n, 11 * n)) for n in lengths]}, return_tensors="pt")
    packed, labels = pack(dict(batch), batch["input_ids"])
    ids = [*range(40, 44), *range(30, 33)]
    assert packed["input_ids"].tolist() == [list(range(70, 77)), ids]
    assert packed["position_ids"].tolist() == [list(range(7)), [0, 1, 2, 3, 0, 1, 2]]
    assert labels.tolist() == [[-100, *range(71, 77)], [-100, 41, 42, 43, -100, 31, 32]]
    assert "attention_mask" not in packed


def test_a_batch_that_cannot_be_packed_is_left_or_refused():
    batch = llm_toys.collate([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 2)
    labels = batch.pop("labels")
    assert pack(batch, labels) == (batch, labels)  # of one length: nothing to gain
    with pytest.raises(DataError, match="needs an attention_mask of the shape"):
        pack({"input_ids": batch["input_ids"]}, labels)
    with pytest.raises(DataError, match="but kind has others: remove it"):
        pack(batch | {"kind": torch.zeros(2)}, labels)


@pytest.mark.parametrize("kind", MIX)
def test_models_that_mix_the_examples_of_a_row_are_refused(kind):
    config, words = MIX[kind]
    with pytest.raises(ConfigError, match=rf"packing is not possible with .*{words}.*: set packing=false"):
        check_packing(made(config))


def test_logits_that_are_no_numbers_once_examples_share_a_row_are_refused():
    class Overflowing(transformers.LlamaForCausalLM):
        def forward(self, position_ids=None, **given):
            outputs = super().forward(position_ids=position_ids, **given)
            if position_ids is not None:
                outputs.logits[0, 0, 0] = torch.nan
            return outputs

    with pytest.raises(ConfigError, match=r"are not those of each alone \(by nan\)"):
        check_packing(Overflowing(transformers.LlamaConfig(**SIZE)))


def test_learned_prompts_and_divided_weights_are_refused():
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ConfigError, match="its adapter adds positions of its own"):
        check_packing(peft.get_peft_model(llm_toys.llama(), prompt))
    model = llm_toys.llama()
    model.lm_head.weight.ds_id = 0  # as DeepSpeed marks them
    with pytest.raises(ConfigError, match="cannot be verified for weights that DeepSpeed's ZeRO-3 has divided"):
        check_packing(model)


# the command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums, every third of them told at length."""
    rows = [row | {"question": row["question"] * (1 + 2 * (i % 3 == 0))} for i, row in
            enumerate(llm_toys.questions(24))]  # fmt: skip
    return write(tmp_path_factory.mktemp("data") / "sums.jsonl", rows)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_packed_run_is_the_same_run_and_resumes_in_the_middle(lora, base, data, tmp_path, capfd):
    settings = sets(f"lora={lora}", "held_out=0.25", "eval_steps=2", "epochs=2", "adam_epsilon=1e-4")
    command(*short(base, data, tmp_path / "padded", *settings))
    command(*short(base, data, tmp_path / "packed", *settings, "--set", "packing=true"))
    said = " ".join(capfd.readouterr().err.split())
    assert "of batch 4, packed, seed 0;" in said and "of batch 4, seed 0;" in said
    padded, packed = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("padded", "packed"))
    assert [line.keys() for line in packed] == [line.keys() for line in padded] and packed != padded
    for line, other in zip(packed, padded, strict=True):
        numbers = [key for key in line if key != "run"]
        assert [line[key] for key in numbers] == pytest.approx([other[key] for key in numbers], rel=1e-3)
    assert read_json(tmp_path / "packed" / "config.json")["settings"]["packing"]
    assert "packing" not in read_json(tmp_path / "padded" / "config.json")["settings"]

    stop_and_resume(short(base, data, tmp_path / "stopped", *settings, "--set", "packing=true"), at=3)
    assert "Resuming after step 3" in capfd.readouterr().err
    resumed = read_lines(tmp_path / "stopped" / "metrics.jsonl")
    assert [line | {"run": ""} for line in resumed] == [line | {"run": ""} for line in packed]


def test_a_model_that_cannot_be_packed_is_refused_before_the_folder_exists(data, tmp_path):
    transformers.MambaForCausalLM(MIX["states"][0]).save_pretrained(tmp_path / "mamba")
    llm_toys.tokenizer().save_pretrained(tmp_path / "mamba")
    with pytest.raises(ConfigError, match="packing is not possible with MambaForCausalLM"):
        command(*short(tmp_path / "mamba", data, tmp_path / "run", *sets("packing=true")))
    assert not (tmp_path / "run").exists()
