"""The trainers against transformers' own, textbook losses, finite differences of processes and resumed runs."""

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
import trl
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl import distributed
from matrix_ssl.errors import ConfigError, DataError, NotFiniteError, TrainingError
from matrix_ssl.llm import MatrixSFTTrainer, MatrixTrainer, Objective, matrix_cross_entropy_loss
from matrix_ssl.llm import matrix_cross_entropy_terms_from_logits as terms
from matrix_ssl.llm.finetune.fused_head import ending_in, find_form
from matrix_ssl.llm.head import effective_rows, head_rows
from tests.support import llm_toys

# peft 0.21 and trl 1.16 use names that transformers 5.23 calls old
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
MATRIX = Objective(weight=0.7, ridge=0.02)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def train(
    model: Any, folder: Path, *, matrix: Objective | None = MATRIX, resume: str | None = None, **changes: Any
) -> Any:
    """A training of ``model`` in place; ``matrix=None`` is that of transformers."""
    common = {
        "model": model,
        "args": llm_toys.arguments(folder, **changes),
        "train_dataset": llm_toys.sequences(),
        "data_collator": llm_toys.collate,
    }
    trainer = transformers.Trainer(**common) if matrix is None else MatrixTrainer(**common, matrix=matrix)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def lines(trainer: Any) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


def textbook(model: Any, rows: list[dict[str, list[int]]], objective: Objective) -> tuple[Tensor, Tensor]:
    """Means of cross-entropy and of the closed form over all tokens that count, a sequence at a time, by autograd."""
    head = effective_rows(model.get_output_embeddings())[0].detach()
    unit = head / head.norm(dim=1, keepdim=True)
    ce, mce, count = 0.0, 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        for t, label in enumerate(row["labels"][1:]):
            if label != llm_toys.IGNORED:
                q = logits[t].softmax(0)
                ce = ce - q[label].log()
                mce = mce - ((q * (unit @ unit[label]) ** 2).sum() + objective.ridge).log()
                count += 1
    return ce / count, mce / count


def test_without_matrix_term_it_trains_as_transformers_does(tmp_path):
    ours, theirs = llm_toys.llama(), llm_toys.llama()
    changes = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 3, "per_device_train_batch_size": 2,
               "gradient_accumulation_steps": 2, "max_grad_norm": 1.0,
               "adam_epsilon": 1e-6}  # fmt: skip  # the default magnifies rounding of gradients near zero
    found = train(ours, tmp_path, matrix=Objective(weight=0.0), **changes)
    expected = train(theirs, tmp_path, matrix=None, **changes)
    for name, parameter in llm_toys.weights(theirs).items():
        torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=0, atol=1e-6)
    for line, other in zip(lines(found), lines(expected), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert line["ce"] == pytest.approx(other["loss"], rel=1e-6)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


def test_parts_of_a_batch_train_as_the_whole_batch_and_log_means_over_tokens(tmp_path):
    whole, parts = llm_toys.llama().double(), llm_toys.llama().double()
    start = llm_toys.llama().double()
    one = train(whole, tmp_path)
    four = train(parts, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for name, parameter in llm_toys.weights(whole).items():
        torch.testing.assert_close(parts.get_parameter(name), parameter, **CLOSE)
    rows = llm_toys.sequences()[:8]
    batch = llm_toys.collate(rows)
    logits = start(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    ce = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    for trainer in (one, four):
        assert lines(trainer)[0]["ce"] == pytest.approx(ce.item(), rel=1e-6)
        assert lines(trainer)[0]["mce"] == pytest.approx(textbook(start, rows, MATRIX)[1].item(), rel=1e-6)
        for line in lines(trainer):
            assert line["loss"] == pytest.approx(line["ce"] + MATRIX.weight * line["mce"], rel=1e-6)


def test_lines_that_cover_several_steps_are_means_over_them(tmp_path):
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    every = lines(train(llm_toys.llama(), tmp_path, **changes))
    second = lines(train(llm_toys.llama(), tmp_path, **changes, logging_steps=2))
    for key in ("ce", "mce", "loss"):
        means = [(a[key] + b[key]) / 2 for a, b in zip(every[::2], every[1::2], strict=True)]
        assert [line[key] for line in second] == pytest.approx(means, rel=1e-5)


def models() -> dict[str, Any]:
    """Heads of all kinds: apart, tied to the embeddings, with scaled or capped logits, below adapters."""
    size = {"vocab_size": len(llm_toys.tokenizer()), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": None}  # fmt: skip
    torch.manual_seed(1)
    adapted = peft.get_peft_model(llm_toys.llama(), peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)  # zero at first, which would leave lora_A without gradient
    on_head = peft.get_peft_model(llm_toys.llama(), peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    for name, parameter in on_head.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    whole_head = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    biased = transformers.PhiForCausalLM(transformers.PhiConfig(**size))
    cohere = transformers.CohereForCausalLM(
        transformers.CohereConfig(**size, logit_scale=0.3, bos_token_id=None, eos_token_id=0)
    )
    with torch.no_grad():
        biased.lm_head.bias.normal_()
    with_bias = peft.get_peft_model(
        copy.deepcopy(biased), peft.LoraConfig(r=2, target_modules=["lm_head"], lora_bias=True)
    )
    for name, parameter in with_bias.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return {
        "llama": llm_toys.llama(),
        "biased": biased,
        "cohere": cohere,
        "adapter on the head": on_head,
        "adapter with a bias": with_bias,
        "head trained whole": peft.get_peft_model(llm_toys.llama(), whole_head),
        "tied": transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, tie_word_embeddings=True)),
        "scaled": transformers.GraniteForCausalLM(transformers.GraniteConfig(**size, logits_scaling=0.5)),
        "capped": transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**size, head_dim=16, final_logit_softcapping=2.0)
        ),
        "lora": adapted,
    }


KINDS = ["llama", "biased", "cohere", "adapter on the head", "adapter with a bias", "head trained whole", "tied",
         "scaled", "capped", "lora"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_definition(kind, tmp_path, monkeypatch):
    """The logits are never asked for, but for the proof on the first batch."""
    model = models()[kind].double().eval()
    trainer = MatrixTrainer(model=model, args=llm_toys.arguments(tmp_path), matrix=MATRIX)
    monkeypatch.setattr("matrix_ssl.llm.finetune.trainer._logits", None)
    rows = llm_toys.sequences(5)
    trainer.compute_loss(model, llm_toys.collate(rows)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ce, mce = textbook(model, rows, MATRIX)
    (ce + MATRIX.weight * mce).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_sequences_without_padding_are_learned_as_each_alone(tmp_path):
    """As transformers' collator puts them for flash attention, with positions and ``cu_seq_lens``."""
    model, rows = llm_toys.llama().double().eval(), llm_toys.sequences(5)
    trainer = MatrixTrainer(model=model, args=llm_toys.arguments(tmp_path), matrix=MATRIX)
    batch = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(rows)
    assert batch["input_ids"].shape[0] == 1 and len(batch["cu_seq_lens_q"]) == len(rows) + 1
    trainer.compute_loss(model, batch).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    ce, mce = textbook(model, rows, MATRIX)
    (ce + MATRIX.weight * mce).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_adapters_alone_are_trained(tmp_path):
    model = peft.get_peft_model(llm_toys.llama(), peft.LoraConfig(r=2, target_modules="all-linear"))
    before = llm_toys.weights(model)
    train(model, tmp_path)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("lora_" in name for name in changed)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    changes = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 4, "lr_scheduler_type": "linear",
               "train_sampling_strategy": "random", "per_device_train_batch_size": 3}  # fmt: skip
    plain, checkpointed, resumed = llm_toys.llama(), llm_toys.llama(), llm_toys.llama()
    train(plain, tmp_path / "plain", **changes)
    through = train(
        checkpointed, tmp_path / "a", **changes, activation_checkpointing=True, save_strategy="steps", save_steps=2
    )
    again = train(
        resumed, tmp_path / "b", **changes, activation_checkpointing=True, resume=str(tmp_path / "a" / "checkpoint-2")
    )
    for name, parameter in llm_toys.weights(plain).items():
        torch.testing.assert_close(checkpointed.get_parameter(name), parameter, rtol=0, atol=1e-7)
        assert torch.equal(resumed.get_parameter(name), checkpointed.get_parameter(name)), name
    keys = ("step", "ce", "mce", "loss")
    assert [[line[k] for k in keys] for line in lines(again)] == [[line[k] for k in keys] for line in lines(through)]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_loss_of_evaluation_is_the_mean_over_tokens_in_batches_of_any_size(batch, tmp_path):
    model = llm_toys.llama()
    trainer = MatrixTrainer(
        model=model, args=llm_toys.arguments(tmp_path, per_device_eval_batch_size=batch),
        data_collator=llm_toys.collate, matrix=MATRIX,
    )  # fmt: skip
    rows = llm_toys.sequences(8)
    ce, mce = textbook(model, rows, MATRIX)
    expected = pytest.approx((ce + MATRIX.weight * mce).item(), rel=1e-5)
    assert trainer.predict(rows[:2]).metrics["test_loss"] != expected
    found = trainer.evaluate(rows)
    assert (found["eval_loss"], found["eval_ce"]) == (expected, pytest.approx(ce.item(), rel=1e-5))
    assert trainer.predict(rows).metrics["test_loss"] == expected


def sft(model: Any, folder: Path, *, changes: dict[str, Any] | None = None, **given: Any) -> Any:
    settings = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "optim": "sgd",
        "learning_rate": 0.5, "max_steps": 2, "logging_steps": 1, "save_strategy": "no",
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_length": 64, "bf16": False,
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
    } | (changes or {})  # fmt: skip
    config = trl.SFTConfig(**settings)
    rows: list[Any] = [{"prompt": row["question"], "completion": row["answer"]} for row in llm_toys.questions(16)]
    tokenizer = llm_toys.tokenizer()
    if settings.get("assistant_only_loss"):
        tokenizer.chat_template = GENERATION
        rows = [{"messages": [{"role": "user", "content": row["prompt"]},
                              {"role": "assistant", "content": row["completion"]}]} for row in rows]  # fmt: skip
    from datasets import Dataset

    trainer = given.pop("kind", MatrixSFTTrainer)(
        model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        eval_dataset=Dataset.from_list(rows[:8]) if "eval_strategy" in settings else None, **given,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8},
        # answers of conversations alone, several conversations in a sequence, told apart by their positions
        {"gradient_accumulation_steps": 1, "packing": True, "assistant_only_loss": True, "max_length": 90},
    ],
    ids=["micro-batches", "evaluation", "packed, answers alone"],
)
def test_sft_without_matrix_term_trains_as_trl_does(changes, tmp_path):
    ours, theirs = llm_toys.llama(), llm_toys.llama()
    found = sft(ours, tmp_path, matrix=Objective(weight=0.0), changes=changes)
    expected = sft(theirs, tmp_path, kind=trl.SFTTrainer, changes=changes)
    for name, parameter in llm_toys.weights(theirs).items():
        torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=0, atol=1e-5)
    assert [line["ce"] for line in lines(found)] == pytest.approx([line["loss"] for line in lines(expected)], rel=1e-5)
    if "gradient_accumulation_steps" not in changes:
        return  # trl takes the mean of the micro-batches' means, whatever their numbers of tokens
    for line, other in zip(found.state.log_history, expected.state.log_history, strict=True):
        start = "eval_" if "eval_loss" in line else ""
        assert not start or line["eval_ce"] == pytest.approx(line["eval_loss"], rel=1e-5)
        for key in ("entropy", "mean_token_accuracy") if "loss" in line or start else ():
            assert line[start + key] == pytest.approx(other[start + key], rel=1e-5), key
        assert line.get("num_tokens") == other.get("num_tokens")


def test_sft_trains_adapters_with_the_matrix_term(tmp_path):
    trainer = sft(llm_toys.llama(), tmp_path, matrix=MATRIX, peft_config=peft.LoraConfig(r=2))
    for line in lines(trainer):
        assert line["loss"] == pytest.approx(line["ce"] + MATRIX.weight * line["mce"], rel=1e-5)


VIRTUAL = {
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    # which keeps the model's forward, so that the trainer takes the logits
    "adaption prompts": peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=1),
}


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_before_a_sequence_are_not_learned(kind, tmp_path):
    found = []
    for matrix in (Objective(weight=0.0), None):
        base = llm_toys.llama()
        torch.manual_seed(0)
        model = peft.get_peft_model(base, VIRTUAL[kind])
        trainer = train(model, tmp_path, matrix=matrix, max_steps=1, per_device_train_batch_size=2)
        found.append((lines(trainer)[0]["loss"], llm_toys.weights(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, weight in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], weight, rtol=0, atol=1e-6, msg=name)


def test_a_step_and_an_evaluation_without_a_label_change_nothing(tmp_path):
    """transformers divides by zero in neither; so do we."""
    rows = llm_toys.sequences(4)
    for row in rows[2:]:
        row["labels"] = [llm_toys.IGNORED] * len(row["labels"])
    arguments = llm_toys.arguments(
        tmp_path, per_device_train_batch_size=2, per_device_eval_batch_size=2, eval_strategy="steps", eval_steps=1
    )
    trainer = MatrixTrainer(
        model=llm_toys.llama(), args=arguments, train_dataset=rows, eval_dataset=rows,
        data_collator=llm_toys.collate, matrix=MATRIX,
    )  # fmt: skip
    trainer.train()
    assert lines(trainer)[1]["loss"] == lines(trainer)[1]["grad_norm"] == 0
    first, second = (line["eval_ce"] for line in trainer.state.log_history if "eval_loss" in line)
    assert first == second > 0
    assert all(p.isfinite().all() for p in trainer.model.parameters())


class Doubled(nn.Linear):
    """A head that is no product with its weight."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).sinh()


def test_a_head_that_is_not_one_product_is_trained_by_its_logits_and_the_log_says_so_once(tmp_path, caplog):
    model = llm_toys.llama().double()
    model.lm_head.__class__ = Doubled
    trainer = train(model, tmp_path)
    (record,) = (record for record in caplog.records if "whole logits" in record.message)
    assert "what its head gives differs from products with its weight" in record.message
    start = llm_toys.llama().double()
    start.lm_head.__class__ = Doubled
    ce, mce = textbook(start, llm_toys.sequences()[:8], MATRIX)
    assert lines(trainer)[0]["loss"] == pytest.approx((ce + MATRIX.weight * mce).item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "capped", "scaled"])
def test_scale_and_cap_are_found_where_logits_are_too_small_to_show_them(kind):
    model = models()[kind].bfloat16()
    inputs = {"input_ids": torch.arange(12).view(1, -1)}
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e-4)
    expected = {"llama": (1.0, None), "capped": (1.0, 2.0), "scaled": (2.0, None)}[kind]
    assert find_form(model, model, inputs) == (expected, "")
    model.register_forward_hook(lambda module, given, outputs: setattr(outputs, "logits", outputs.logits + 1))
    form, reason = find_form(model, model, inputs)
    assert form is None and "its logits differ from scaled and capped products" in reason


def test_logits_are_computed_where_metrics_want_them(tmp_path):
    shapes = []
    trainer = MatrixTrainer(
        model=llm_toys.llama(), args=llm_toys.arguments(tmp_path), data_collator=llm_toys.collate,
        compute_metrics=lambda x: shapes.append(x.predictions.shape) or {},
    )  # fmt: skip
    trainer.evaluate(llm_toys.sequences(4))
    assert shapes[0][::2] == (4, len(llm_toys.tokenizer()))


class Forward(nn.Module):
    """A model whose forward gives what a test wants."""

    def __init__(self, **outputs: Any):
        super().__init__()
        self.head, self.outputs = nn.Linear(4, 11, bias=False), outputs

    def get_output_embeddings(self) -> nn.Module | None:
        return self.outputs.get("head", self.head)

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(**self.outputs)


BATCH = {"input_ids": torch.zeros(1, 3, dtype=torch.long), "labels": torch.ones(1, 3, dtype=torch.long)}


@pytest.mark.parametrize(
    ("outputs", "batch", "error", "words"),
    [
        ({"logits": None}, BATCH, ConfigError, "use_liger_kernel=False"),
        ({}, BATCH, ConfigError, "returns no logits"),
        ({"logits": torch.full((1, 3, 11), torch.nan)}, BATCH, NotFiniteError, "batch 0, position 0 is nan"),
        ({"logits": torch.zeros(1, 3, 11), "aux_loss": torch.ones(())}, BATCH, ConfigError, "output_router_logits"),
        ({"logits": torch.zeros(1, 3, 11)}, {"input_ids": BATCH["input_ids"]}, DataError, "no labels"),
        ({"logits": torch.zeros(1, 3, 11)}, BATCH | {"shift_labels": BATCH["labels"]}, DataError, "shift_labels"),
        ({"logits": torch.zeros(1, 3, 11)}, BATCH | {"labels": BATCH["labels"] * 11}, DataError, "label is 11"),
    ],
)
def test_a_forward_that_the_loss_cannot_use_is_refused(outputs, batch, error, words, tmp_path):
    model = Forward(**outputs)
    trainer = MatrixTrainer(model=model, args=llm_toys.arguments(tmp_path))
    with pytest.raises(error, match=words):
        trainer.compute_loss(model, batch)


def adapted_head(config: Any) -> Any:
    return peft.get_peft_model(llm_toys.llama(), config)


def small_head() -> Any:
    model = llm_toys.llama()
    model.resize_token_embeddings(280)
    return model


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (lambda: Forward(head=None), {}, "no head for tokens"),
        (lambda: Forward(head=nn.Linear(4, 11).requires_grad_(False).to("meta").weight), {}, "no head for tokens"),
        (
            partial(adapted_head, peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[])),
            {},
            r"an adapter, peft\.tuners\.ia3\.layer\.Linear, that is not of low rank",
        ),
        (
            partial(adapted_head, peft.LoraConfig(r=2, target_modules=["lm_head"], use_dora=True)),
            {},
            r"an adapter, peft\.tuners\.lora\.variants\.DoraLinearVariant, that is not of low rank",
        ),
        (partial(adapted_head, peft.OFTConfig(target_modules=["lm_head"])), {}, r"peft\.tuners\.oft\.layer\.Linear"),
        (partial(adapted_head, peft.LoHaConfig(target_modules=["lm_head"])), {}, r"peft\.tuners\.loha\.layer\.Linear"),
        (llm_toys.llama, {"compute_loss_func": lambda *_, **__: None}, "compute_loss_func would replace"),
        (llm_toys.llama, {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        (llm_toys.llama, {"matrix": Objective(form="lanczos", steps=33)}, "1 to 32 Lanczos steps"),
    ],
)
def test_what_the_loss_cannot_be_added_to_is_refused(model, given, words, tmp_path):
    smoothing = {key: given[key] for key in given if key == "label_smoothing_factor"}
    rest = {key: value for key, value in given.items() if key not in smoothing}
    with pytest.raises(ConfigError, match=words):
        MatrixTrainer(model=model(), args=llm_toys.arguments(tmp_path, **smoothing), **rest)


def test_a_token_without_a_row_is_refused_where_a_label_has_it(tmp_path):
    """A tokenizer may have tokens that the data never use, as that of Gemma 3."""
    trainer = MatrixTrainer(
        model=small_head(), args=llm_toys.arguments(tmp_path), processing_class=llm_toys.tokenizer()
    )
    labels = torch.full((1, 3), 279)
    assert trainer.compute_loss(trainer.model, {"input_ids": labels, "labels": labels}).isfinite()
    with pytest.raises(DataError, match="largest label is 280, but the head has 280 rows"):
        trainer.compute_loss(trainer.model, {"input_ids": labels, "labels": labels + 1})


def test_a_cross_entropy_that_is_not_a_number_stops_the_training_where_looking_is_free(tmp_path):
    trainer = MatrixTrainer(model=llm_toys.llama(), args=llm_toys.arguments(tmp_path))
    trainer.model.train()
    nothing = torch.tensor([float("nan"), 1.0, 0.0, 0.0])  # as it comes from a device where looking would wait
    trainer._note(nothing, scale=1, items=1, count=torch.tensor(1), inputs={})
    trainer.state.global_step = 3
    with pytest.raises(TrainingError, match="of steps 1 to 3 is nan"):
        trainer.log({"loss": 0.0})


def check(folder: str) -> None:
    """What each of two processes does: trains, and gathers a head that is spread over both."""
    distributed.start("cpu")
    assert distributed.world_size() == 2
    model = llm_toys.llama().double()
    trainer = train(model, Path(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2)
    expected = torch.load(Path(folder) / "expected.pt", weights_only=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected["weights"][name], **CLOSE)
    for line, other in zip(lines(trainer), expected["lines"], strict=True):
        for key in ("loss", "ce", "mce"):
            assert abs(line[key] - other[key]) < 1e-6 * abs(other[key]), key
    check_spread(llm_toys.llama().double())
    distributed.stop()


def check_spread(model: Any) -> None:
    """Under FSDP, version 2, the rows are whole before and after the forward, and gradients those of one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    batch = llm_toys.collate(llm_toys.sequences(4))
    single = copy.deepcopy(model)
    rows = head_rows(single)
    terms(single(batch["input_ids"]).logits, rows, batch["labels"], objective=MATRIX).loss.backward()
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    assert model.get_output_embeddings().weight.to_local().shape[0] == len(rows) // 2
    assert torch.equal(head_rows(model), rows)
    logits = model(batch["input_ids"]).logits
    terms(logits, head_rows(model), batch["labels"], objective=MATRIX).loss.backward()
    check_gradients(model, single)

    def compute(hidden: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
        return matrix_cross_entropy_loss(hidden, rows, batch["labels"], bias=bias, objective=MATRIX)

    assert find_form(model, model, {"input_ids": batch["input_ids"]})[0] == (1.0, None)
    with ending_in(model, compute):  # without logits
        model(batch["input_ids"]).loss.backward()
    check_gradients(model, single)


def check_gradients(model: Any, single: Any) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), single.get_parameter(name).grad, **CLOSE)
        parameter.grad = None
