"""Fine-tuning by two processes, each with all weights or half of every one: FSDP, version 2, and ZeRO-3.

accelerate uses FSDP on accelerators only, though PyTorch's works on a CPU: ``SPREAD`` makes it take two CPU processes
for such. Everything else, collectives included, is real. DeepSpeed is no dependency of the tests; where it is
installed, its tests run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from matrix_ssl.cli import main
from matrix_ssl.errors import ConfigError
from matrix_ssl.llm.finetune.settings import FineTuneSettings, training_arguments
from matrix_ssl.runs.files import read_json, read_lines
from tests.llm import test_trainer
from tests.support import llm_toys
from tests.support.runs import start_processes

SPREAD = """
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
first = AcceleratorState.__init__
def init(self, *args, **kwargs):
    shared = PartialState()._shared_state
    if shared["distributed_type"] == DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_XPU
    first(self, *args, **kwargs)
    assert self.distributed_type == DistributedType.FSDP, self.distributed_type
AcceleratorState.__init__ = init
"""
HALVES = """
import matrix_ssl.llm.finetune.run as f, torch.distributed.tensor as t
save = f._save_model
def look(trainer, out):
    rows = trainer.model.get_output_embeddings().weight
    assert isinstance(rows, t.DTensor) and rows.to_local().shape[0] == rows.shape[0] // 2
    save(trainer, out)
f._save_model = look
"""
DEATH = """
import matrix_ssl.llm.finetune.trainer as r
def die(self, args, state, control, **_):
    if state.global_step == 3:
        raise ZeroDivisionError
r.Recorder.on_step_end = die
"""
COMMAND = "from matrix_ssl.cli.main import main; main()"
ZERO = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0,
                              "stage3_gather_16bit_weights_on_model_save": True},
        "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, 24 sums, and the folder ``one`` of a run by one process."""
    folder = tmp_path_factory.mktemp("base")
    llm_toys.llama().save_pretrained(folder / "model")
    llm_toys.tokenizer().save_pretrained(folder / "model")
    rows = "".join(json.dumps(row) + "\n" for row in llm_toys.questions(24))
    (folder / "sums.jsonl").write_text(rows, "utf-8")
    main.commands.main(words(folder, "one"), standalone_mode=False)
    return folder


def words(base: Path, out: str, *settings: str) -> list[str]:
    """``llm finetune``, 6 steps and a checkpoint after every second one."""
    all_settings = ("epochs=1", "batch_size=4", "learning_rate=0.01", "save_strategy=steps", "save_steps=2", *settings)
    return ["llm", "finetune", "--device", "cpu", "--model", str(base / "model"), "--data", str(base / "sums.jsonl"),
            "--template", "plain", "--out", str(base / out),
            *(word for setting in all_settings for word in ("--set", setting))]  # fmt: skip


def start(base: Path, out: str, *settings: str, before: str = "", code: int = 0) -> str:
    """The command in two processes, and what they printed."""
    script = base / "command.py"
    script.write_text(before + COMMAND)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*torchrun, str(script), *words(base, out, *settings)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == code, found.stdout[-4000:]
    return found.stdout


def check(run: Path, one: Path) -> None:
    """A run by two processes has the losses and the weights of the other, all of them."""
    for line, other in zip(lines(run), lines(one), strict=True):
        assert line["ce"] == pytest.approx(other["ce"], rel=1e-4)  # AdamW magnifies rounding of small gradients
        assert line["mce"] == pytest.approx(other["mce"], rel=1e-3)
    found, expected = (load_file(folder / "model" / "model.safetensors") for folder in (run, one))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-3, msg=name)
    sizes = [read_json(folder / "finetune.json")["parameters"] for folder in (run, one)]
    assert sizes[0] == sizes[1] == sum(p.numel() for p in llm_toys.llama().parameters())
    transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    assert not (run / "checkpoints").exists()


def lines(run: Path) -> list[dict[str, Any]]:
    return read_lines(run / "metrics.jsonl")


def test_two_processes_train_as_one(tmp_path):
    """Uneven numbers of labels on both; the gradients of DistributedDataParallel add up to those of the whole batch."""
    model = llm_toys.llama().double()
    one = test_trainer.train(model, tmp_path)
    torch.save({"weights": llm_toys.weights(model), "lines": test_trainer.lines(one)}, tmp_path / "expected.pt")
    code = f"import tests.llm.test_trainer as t; t.check({str(tmp_path)!r}); raise SystemExit(0)"
    for command in start_processes(tmp_path, [], count=2, before=code):
        ended = command.wait()
        assert ended.code == 0, ended.err[-3000:]


def test_fsdp_gives_the_run_of_one_process(base):
    """Forked processes; those of the slow tests are programs that torchrun starts."""
    for command in start_processes(base, words(base, "fsdp", "fsdp=true"), count=2, before=SPREAD + HALVES):
        ended = command.wait()
        assert ended.code == 0, ended.err[-4000:]
    check(base / "fsdp", base / "one")


@pytest.mark.slow  # four more launches of two processes
@pytest.mark.parametrize("kind", ["FULL", "SHARDED"])
def test_fsdp_goes_on_after_a_death_from_checkpoints_in_one_or_in_parts(kind, base):
    settings = ("fsdp=true", f'fsdp_config={{"state_dict_type": "{kind}_STATE_DICT"}}')
    assert "ZeroDivisionError" in start(base, kind, *settings, before=SPREAD + DEATH, code=1)
    assert (base / kind / "checkpoints" / "checkpoint-2").is_dir() and not (base / kind / "model").exists()
    assert "Resuming after step 2" in start(base, kind, *settings, before=SPREAD + HALVES)
    check(base / kind, base / "one")


def test_zero_3_gives_the_run_of_one_process(base):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    start(base, "zero", f"deepspeed={json.dumps(ZERO)}")
    check(base / "zero", base / "one")


def test_zero_3_goes_on_after_a_death(base):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    setting = f"deepspeed={json.dumps(ZERO)}"
    assert "ZeroDivisionError" in start(base, "dead", setting, before=DEATH, code=1)
    assert "Resuming after step 2" in start(base, "dead", setting)
    check(base / "dead", base / "one")


def test_zero_3_that_would_save_no_model_is_refused_before_the_training(tmp_path, monkeypatch):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")  # the arguments set it, and it ends with the test
    setting = 'deepspeed={"zero_optimization": {"stage": 3}}'
    settings = FineTuneSettings(model="model", data="data", template="plain", arguments=(setting,))
    with pytest.raises(ConfigError, match="set stage3_gather_16bit_weights_on_model_save to true"):
        training_arguments(settings, output=tmp_path, processes=1, device=torch.device("cpu"))
