"""A run with held-out rows, what it says at the end, and its answers; what libraries refuse late is refused early."""

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from matrix_ssl.cli import main
from matrix_ssl.errors import CheckpointError, ConfigError, RunFolderError
from matrix_ssl.llm.exact import normalised
from matrix_ssl.llm.models import check_causal, find_model, open_model, open_tokenizer
from matrix_ssl.runs.digests import file_digests
from matrix_ssl.runs.files import read_json, read_lines
from tests.llm.test_finetune import sets, short, weights, write
from tests.support import llm_toys

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
# the loss of held-out rows falls, then rises, so the best checkpoint is not the last
RISING = sets("held_out=0.25", "learning_rate=0.1", "lr_scheduler_type=constant", "max_steps=4")


def command(*words: Any) -> None:
    main.commands.main(["llm", *map(str, words)], standalone_mode=False)


def test_held_out_rows_choose_the_checkpoint_and_the_model_answers(base, data, tmp_path, capfd):
    out = tmp_path / "run"
    command("finetune", "--device", "cpu", *short(base, data, out, *RISING))
    result, lines = read_json(out / "finetune.json"), read_lines(out / "metrics.jsonl")
    assert (result["counts"]["examples"], result["counts"]["held_out"]) == (18, 6)
    measured = {line["step"]: line for line in lines if "eval_loss" in line}
    assert set(measured) == {0, 2, 4}
    best = min((step for step in measured if step), key=lambda step: measured[step]["eval_loss"])
    assert best == 2
    assert result["held_out"] == {"first": measured[0], "kept": measured[best]}
    from matrix_ssl.llm import MatrixTrainer, models
    from matrix_ssl.llm.data import examples, question_files

    rows = question_files.exchanges(question_files.read_rows(str(data)), ("question", "answer"))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()
    held_out = examples.make_examples(
        [rows[i] for i in order[:6]], template="plain", tokenizer=llm_toys.tokenizer(), max_length=99
    )
    trainer = MatrixTrainer(
        model=models.open_model(str(out / "model")), data_collator=examples.collator(llm_toys.tokenizer()),
        args=llm_toys.arguments(tmp_path),
    )  # fmt: skip
    assert trainer.evaluate(held_out)["eval_ce"] == pytest.approx(measured[best]["eval_ce"], rel=1e-5)
    said = capfd.readouterr().err
    assert f"held out {measured[0]['eval_loss']:.3g} at step 0" in said and "the model that is kept" in said
    repeats = 18 - len({str(rows[i]) for i in order[6:]})
    assert repeats and f"{repeats} of the 18 rows to learn repeat an earlier one" in said
    assert "The training had only 4 steps" in said and "llm generate --model" in said

    command("generate", "--device", "cpu", "--model", out, "--prompt", "How many?", "--max-new-tokens", 4)
    printed = capfd.readouterr()
    assert printed.out.strip() and "tokens/s" in printed.err
    answers = tmp_path / "answers.jsonl"
    command("generate", "--device", "cpu", "--model", out, "--data", data, "--limit", 3, "--max-new-tokens", 4, "--out",
            answers)  # fmt: skip
    asked = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    assert [one["question"] for one in asked] == [row["question"] for row in llm_toys.questions(24)[:3]]

    # a file whose answers are those that the model gives, but for one
    asked[1]["answer"] = "something else"
    gold = write(tmp_path / "gold.jsonl", [one | {"answer": one["answer"] or "?"} for one in asked])
    command("score", "--device", "cpu", "--model", out, "--task", "exact", "--data", gold, "--max-new-tokens", 4)
    score = read_json(out / "exact.json")
    assert score["accuracy"] == pytest.approx(2 / 3) and score["tokens_per_second"] > 0
    assert normalised("  Two\nwords. ") == "two words"


def test_a_run_that_is_moved_before_it_writes_its_model_keeps_the_best_one(base, data, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise RunFolderError("The disk is full.")

    out, moved = tmp_path / "run", tmp_path / "moved"
    with monkeypatch.context() as patch:
        patch.setattr("matrix_ssl.llm.finetune.run._save_model", full)
        with pytest.raises(RunFolderError, match="is full"):
            command("finetune", "--device", "cpu", *short(base, data, out, *RISING))
    out.rename(moved)
    measured = [line for line in read_lines(moved / "metrics.jsonl") if "eval_loss" in line and line["step"]]
    best = min(measured, key=lambda line: line["eval_loss"])
    assert best["step"] < measured[-1]["step"]
    expected = load_file(moved / "checkpoints" / f"checkpoint-{best['step']}" / "model.safetensors")
    command("finetune", "--device", "cpu", *short(base, data, moved, *RISING))
    assert read_json(moved / "finetune.json")["held_out"]["kept"] == best
    found = weights(moved)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_rows_of_a_file_of_their_own_are_held_out(base, data, tmp_path, capfd):
    """Of its 20 rows 8 are learned, too; the run belongs to what the file holds, not to its name."""
    out, others = tmp_path / "run", tmp_path / "others.jsonl"
    write(others, [*llm_toys.questions(8), *({"question": f"{i}?", "answer": "4"} for i in range(12))])
    words = short(base, data, out, "--eval-data", others, *sets("max_steps=2"))
    command("finetune", "--device", "cpu", *words)
    assert read_json(out / "finetune.json")["counts"]["held_out"] == 20
    assert "Warning: 8 of the 20 held-out rows are also among those to learn" in capfd.readouterr().err
    assert weights(out)
    write(others, llm_toys.questions(9))
    with pytest.raises(RunFolderError, match="eval_data_sha256"):
        command("finetune", "--device", "cpu", *words)
    with pytest.raises(ConfigError, match=r"held_out=0\.5 conflicts with --eval-data"):
        command("finetune", "--device", "cpu", *words, *sets("held_out=0.5"))


def test_rows_that_are_too_long_are_counted_on_both_sides(base, tmp_path, capfd):
    """Rows that are held out and too long were counted as learned, too, but not as held out: 3 of the 2 rows."""
    rows = [{"question": question, "answer": "4", "source": "x"} for question in ("1?", "2?", "long " * 20)]
    data = write(tmp_path / "all.jsonl", rows)
    words = short(base, data, tmp_path / "run", "--eval-data", data, *sets("max_length=20", "max_steps=1"))
    command("finetune", "--device", "cpu", *words)
    counts, said = read_json(tmp_path / "run" / "finetune.json")["counts"], " ".join(capfd.readouterr().err.split())
    assert (counts["held_out"], counts["held_out_dropped"], counts["dropped"]) == (2, 1, 1)
    assert "Warning: 3 of the 3 held-out rows are also among those to learn" in said
    assert "truncates 0 held-out sequences and skips 1 held-out rows" in said
    assert "; 1 step of batch 4, seed 0;" in said and "The training had only 1 step: " in said
    assert "or raise max_steps." in said
    assert "Columns that are not used: source; --columns chooses which are learned." in said


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["held_out=0.01"], "of 24 rows holds out 0"),
        (["optim=galore_adamw"], "transformers rejects this training"),
        (["lr_scheduler_type=cosine_with_min_lr"], "cosine_with_min_lr: .* correct lr_scheduler_kwargs, which is null"),
        (["optim=adamw_torch", "optim_args=a"], "transformers rejects this training"),
        (["use_liger_kernel=true"], "needs the package 'liger-kernel'"),
        (["lora=100000"], "lora=100000: no linear layer has a rank above"),
        (["push_to_hub=true"], "push_to_hub=true cannot be set: upload the folder model yourself"),
        (["assistant_only_loss=true"], "answers alone are learned; set answers=all for every answer"),
        (["batch_size=5", "gradient_accumulation=2"], "batch_size=5 is not divisible by gradient_accumulation=2"),
        (["weight_decay=-1"], r"weight_decay=-1\.0: expected a number of at least 0"),
    ],
)
def test_what_the_library_refuses_late_leaves_no_folder(assignments, words, base, data, tmp_path):
    with pytest.raises(ConfigError, match=words):
        command("finetune", "--device", "cpu", *short(base, data, tmp_path / "run", *sets(*assignments)))
    assert not (tmp_path / "run").exists()


def test_a_model_that_sees_what_it_predicts_is_refused():
    """The loss of an encoder falls to zero, and it has learned nothing."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    encoder, decoder = (
        llm_toys.transformers.BertLMHeadModel(llm_toys.transformers.BertConfig(**sizes, is_decoder=decoder))
        for decoder in (False, True)
    )
    with pytest.raises(ConfigError, match=r"x \(BertLMHeadModel\) sees the tokens that it has to predict"):
        check_causal(encoder, "x")
    check_causal(decoder, "x")
    assert decoder.training


def test_a_run_stands_for_its_model_whatever_else_is_put_there(base, tmp_path):
    """``llm score`` itself wrote its answers there, and the run was then refused as changed."""
    run = tmp_path / "run"
    model = shutil.copytree(base, run / "model")
    (run / "environment.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"The fine-tuning in .* is not complete: run its command again first"):
        find_model(str(run))
    result = {"settings": {"template": "plain"}, "files": file_digests(model)}
    (run / "finetune.json").write_text(json.dumps(result))
    (model / "gsm8k.jsonl").write_text("")
    assert find_model(str(run)) == (str(model), {"template": "plain"})
    place, _ = find_model(f"config:{run}")
    assert place == f"config:{model}" and open_tokenizer(place) is not None
    (model / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json has changed since it was written"):
        find_model(str(run))


def test_an_adapter_whose_model_was_moved_names_it(tmp_path):
    """The library took the path for the name of a model on the hub."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(CheckpointError, match=f"an adapter to the model {tmp_path}/gone, which is not there: correct"):
        open_model(str(tmp_path), adapter=True)
