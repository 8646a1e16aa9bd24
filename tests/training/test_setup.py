"""What a training logs, keeps and leaves out; whole runs in this process."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from matrix_ssl import config
from matrix_ssl.config import RunConfig
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import Source, open_source
from matrix_ssl.encoder import load_encoder
from matrix_ssl.errors import ConfigError, Diverged
from matrix_ssl.runs import checkpoint, devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.runs.folder import identity
from matrix_ssl.training import setup
from tests.support.runs import TINY, timeless
from tests.support.runs import lines as saved_lines

QUIET = Display(quiet=True)
CPU = torch.device("cpu")
CHANGED_METHOD = """
import torch
from torch import nn
from matrix_ssl.methods.matrix_ssl import MatrixSSL

class Changed(MatrixSSL):
    calls = 0

    def forward(self, view1, view2):
        type(self).calls += 1
        {forward}
"""


@pytest.fixture(scope="module")
def digits() -> Source:
    return open_source("digits", split="train", data_root=None)


def configure(*settings: str, steps: int = 8) -> RunConfig:
    """A run of ``steps`` steps on handwritten digits."""
    tiny = (*TINY, f"data.subset={64 * steps}", "epochs=1", "log_every=1")
    return setup.complete(config.override(find_recipe("demo"), [*tiny, *settings]))


def pretrain(folder: Path, settings: RunConfig, source: Source, *, display: Display = QUIET) -> dict[str, Any]:
    """Trains into a folder that it makes if it is not there."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config.to_dict(settings))
    return setup.prepare(settings, source=source, device=CPU, display=display).train(folder)


def method_file(folder: Path, forward: str) -> str:
    """A file with a method whose forward is Matrix-SSL's with a change, as a setting."""
    path = folder / "changed.py"
    path.write_text(CHANGED_METHOD.format(forward=forward))
    return f"method.name={path}"


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_encoder(folder).state_dict().items()}


def test_every_line_has_the_keys_that_readers_expect_in_step_order(tmp_path: Path, digits: Source) -> None:
    summary = pretrain(tmp_path, configure("log_every=3", steps=20), digits)
    lines = timeless(tmp_path)
    assert [line["step"] for line in lines] == [1, 3, 4, 6, 8, 9, 12, 15, 16, 18, 20]
    expected = {
        "step", "epoch", "loss", "uniformity", "alignment", "learning_rate", "teacher_momentum", "effective_rank",
        "matrix_entropy", "effective_rank_projection", "spread_projection", "teacher_similarity",
        "negative_determinants", "bad_steps",
    }  # fmt: skip
    owners = [line.get("run") for line in saved_lines(tmp_path)]
    assert owners == [identity(tmp_path), *[None] * (len(lines) - 1)]
    for line in lines:
        assert line.keys() - {"spectrum", "alarm"} == expected
        assert line["loss"] == pytest.approx(line["uniformity"] + line["alignment"], rel=1e-5)
        assert line["epoch"] == line["step"] / 20
        assert math.exp(line["matrix_entropy"]) == pytest.approx(line["effective_rank"], rel=1e-5)
        assert 1 <= line["effective_rank"] <= 16
    spectra = [line["spectrum"] for line in lines if "spectrum" in line]
    assert [line["step"] for line in lines if "spectrum" in line] == [1, 4, 8, 12, 16, 20]
    for spectrum in spectra:
        assert spectrum == sorted(spectrum, reverse=True) and sum(spectrum) == pytest.approx(1, abs=1e-3)
    assert summary == read_json(tmp_path / "summary.json")
    assert summary.keys() == {
        "run", "recipe", "finished", "steps", "epochs", "parameters", "seconds", "seconds_training", "skipped",
        "bad_steps",
        "negative_determinants", "data",
    }  # fmt: skip
    assert summary["data"] == {"name": "digits", "images": 1280} and summary["steps"] == 20 and summary["finished"]
    assert summary["parameters"] == sum(p.numel() for p in load_encoder(tmp_path).parameters())


def test_logging_and_saving_do_not_change_what_is_computed(tmp_path: Path, digits: Source) -> None:
    often = configure("log_every=1", "checkpoint_every=1")
    rarely = configure("log_every=5", "checkpoint_every=100")
    for name, settings in (("often", often), ("rarely", rarely)):
        pretrain(tmp_path / name, settings, digits)
    assert weights(tmp_path / "often") == weights(tmp_path / "rarely")
    losses = {line["step"]: line["loss"] for line in timeless(tmp_path / "often")}
    assert len(losses) == 8
    for line in timeless(tmp_path / "rarely"):
        assert line["loss"] == losses[line["step"]]


def test_the_seed_decides_everything(tmp_path: Path, digits: Source) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(list(tmp_path.iterdir())))  # what ran before does not matter
        torch.rand(7)
        pretrain(tmp_path / name, configure(f"seed={seed}", steps=3), digits)
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b") and weights(tmp_path / "a") == weights(tmp_path / "b")
    assert timeless(tmp_path / "a")[0]["loss"] != timeless(tmp_path / "c")[0]["loss"]


def test_a_subset_is_a_random_choice_of_the_images(digits: Source) -> None:
    few = [
        setup.prepare(configure(f"seed={s}", steps=2), source=digits, device=CPU, display=QUIET).source for s in (0, 1)
    ]
    assert [len(source) for source in few] == [128, 128]
    places = [{source.where(i) for i in range(128)} for source in few]
    assert all(len(p) == 128 for p in places) and places[0] != places[1]


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, digits: Source) -> None:
    """Neither weights nor buffers nor teacher nor optimizer: the run goes on as if that step had not been."""
    forward = """
        output = super().forward(view1, view2)
        if type(self).calls == 3:
            self.before = {k: v.clone() for k, v in before.items()}
            return output._replace(loss=output.loss * float("nan"))
        if type(self).calls == 4:
            assert all(torch.equal(v, self.before[k]) for k, v in before.items())
        return output
    """
    forward = "before = {k: v.clone() for k, v in self.state_dict().items()}" + forward
    summary = pretrain(tmp_path, configure(method_file(tmp_path, forward)), digits)
    assert summary["bad_steps"] == 1
    lines = timeless(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 4, 5, 6, 7, 8]
    assert [line["bad_steps"] for line in lines] == [0, 0, 1, 1, 1, 1, 1]
    found, _ = checkpoint.load_newest(tmp_path)
    assert found is not None and found.counters["bad_steps"] == 1
    assert {int(state["step"]) for state in found.optimizer["state"].values()} == {7}  # AdamW counts its updates


def test_a_gradient_that_is_not_finite_counts_as_well(tmp_path: Path, digits: Source) -> None:
    forward = """
        output = super().forward(view1, view2)
        if type(self).calls % 2 == 0:  # a finite loss whose gradient is infinite
            zero = sum((p * 0).sum() for p in self.parameters() if p.requires_grad)
            return output._replace(loss=output.loss + zero.abs().sqrt())
        return output
    """
    assert pretrain(tmp_path, configure(method_file(tmp_path, forward)), digits)["bad_steps"] == 4


def test_an_eigenvalue_routine_that_fails_counts_as_well(tmp_path: Path, digits: Source) -> None:
    forward = """
        if type(self).calls == 2:
            torch.linalg.eigh(torch.full((3, 3), float("nan")))
        return super().forward(view1, view2)
    """
    assert pretrain(tmp_path, configure(method_file(tmp_path, forward)), digits)["bad_steps"] == 1


def test_three_bad_steps_in_a_row_end_the_run_with_advice(tmp_path: Path, digits: Source) -> None:
    forward = """
        output = super().forward(view1, view2)
        return output._replace(loss=output.loss * float("inf")) if type(self).calls in (2, 3, 5, 6, 7) else output
    """
    with pytest.raises(Diverged, match=r"not finite in step 7 \(bad steps in a row: 3\)\. Lower the learning rate"):
        pretrain(tmp_path, configure(method_file(tmp_path, forward)), digits)
    assert not (tmp_path / "summary.json").exists() and not (tmp_path / "encoder.safetensors").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, digits: Source) -> None:
    forward = "return super().forward(view1, view2)"
    path = method_file(tmp_path, forward)
    with Path(path.partition("=")[2]).open("a") as file:
        file.write("""
    def after_step(self, progress):
        super().after_step(progress)
        if type(self).calls == 3:
            with torch.no_grad():
                next(self.encoder.parameters()).view(-1)[0] = float("nan")
""")
    with pytest.raises(Diverged, match="The weights are not finite after step 3"):
        pretrain(tmp_path, configure(path, "checkpoint_every=1"), digits)
    found, problems = checkpoint.load_newest(tmp_path)
    assert found is not None and (found.step, problems) == (2, [])


def test_a_run_without_uniformity_and_ridge_raises_the_alarm(tmp_path: Path, digits: Source) -> None:
    """Outputs that a method draws to a single point, as any collapse does, are noticed and told once."""
    forward = """
        f1, f2 = self.encoder(view1), self.encoder(view2)
        z1, z2 = self.predictor(self.projector(f1)), self.predictor(self.projector(f2))
        from matrix_ssl.methods import StepOutput
        loss = 100 * (f1.square().mean() + f2.square().mean()) + 0 * (z1.sum() + z2.sum())
        one = torch.ones_like(f1[:, :1]) * f1.detach().mean(0) + 1e-3 * f1.detach()[:, :1]
        return StepOutput(loss, {"negative_determinants": torch.zeros(())}, one, z1.detach(), z2.detach())
    """

    said: list[str] = []

    class Recorder(Display):
        def say(self, text: str) -> None:
            said.append(text)

    pretrain(tmp_path, configure(method_file(tmp_path, forward), steps=12), digits, display=Recorder(quiet=True))
    alarmed = [line["step"] for line in timeless(tmp_path) if any("Collapse" in a for a in line.get("alarm", []))]
    assert alarmed == list(range(5, 13))
    assert [text.partition(":")[0] for text in said].count("Alarm at step 5") == 1
    assert sum("Collapse:" in text for text in said) == 1


def test_the_teacher_is_saved_and_loads(tmp_path: Path, digits: Source) -> None:
    pretrain(tmp_path, configure("method.teacher_momentum=0.5"), digits)
    student, teacher = load_encoder(tmp_path), load_encoder(tmp_path, weights="teacher")
    assert not student.training and not teacher.training
    assert student.state_dict().keys() == teacher.state_dict().keys()
    assert any(not torch.equal(v, teacher.state_dict()[k]) for k, v in student.state_dict().items())


def test_the_options_of_the_method_are_filled_in() -> None:
    options = setup.complete(RunConfig()).method.options
    assert options["ridge"] == 0.1 and options["logarithm"] == "exact" and len(options) >= 8
    assert setup.complete(setup.complete(RunConfig())) == setup.complete(RunConfig())


@pytest.mark.parametrize(
    ("settings", "views"),
    [
        ((), "8 px"),
        (("views.0.count=3",), "4 views of 8 px"),
        (("views.2.count=4", "views.2.image_size=4"), "2 views of 8 px, 4 views of 4 px"),
        (("views.0.image_size=16", "views.1.image_size=16"), "2 views of 16 px"),
    ],
)
def test_the_headline_counts_the_views(digits: Source, settings: tuple[str, ...], views: str) -> None:
    line = setup.headline(config.override(find_recipe("demo"), settings), digits, torch.device("cpu"))
    assert f": tiny_resnet, {views}, " in line


def test_nothing_is_written_before_training(tmp_path: Path, digits: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    setup.prepare(configure(), source=digits, device=CPU, display=QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("batch_size=2000", "data.subset=0"), "batch_size=2000 is larger than the 1437 images of 'digits'"),
        (("network.encoder=alexnet",), "does not accept images of 8 pixels"),
        (("network.encoder=resnet19",), "is not an architecture"),
    ],
)
def test_what_does_not_fit_together_is_found_before_training(digits: Source, settings: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        setup.prepare(configure(*settings), source=digits, device=CPU, display=QUIET)


def test_grey_images_in_a_colour_recipe_are_refused(digits: Source) -> None:
    colour = setup.complete(config.override(find_recipe("cifar10"), ["network.width=8"]))
    with pytest.raises(
        ConfigError, match=r"'digits' has 1-channel images, but recipe 'cifar10' is for 3.*choose a different recipe"
    ):
        setup.prepare(colour, source=digits, device=CPU, display=QUIET)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error(name: str) -> None:
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if available[name]():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(ConfigError, match=f"--device {name}: .*use --device cpu"):
        devices.choose_device(name)


@pytest.mark.parametrize(
    ("processor", "capabilities", "expected"),
    [
        ("Sapphire Rapids", {"avx512_f": True, "avx512_bf16": True, "amx_bf16": True, "amx_tile": True}, "AMX"),
        ("Cooper Lake", {"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, "AVX-512 BF16"),
        ("Ice Lake", {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False, "amx_tile": False}, ""),
        ("AMD, Zen 4", {"avx2": True, "avx512_f": True, "avx512_bf16": True}, "AVX-512 BF16"),
        ("AMD, Zen 3", {"avx2": True, "avx512_f": False, "avx512_bf16": False}, ""),
        ("ARM, Neoverse V1", {"neon": True, "bf16": True, "sve": True, "sve_bf16": True}, "ARM BF16"),
        ("ARM, Neoverse N1", {"neon": True, "bf16": False, "sve": False}, ""),
    ],
)
def test_processors_with_bfloat16(
    processor: str, capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert devices.bfloat16_instructions(CPU) == expected and devices.has_bfloat16(CPU) is bool(expected)
    fresh = setup.settle_precision(RunConfig(), CPU, recorded=None)
    assert fresh.precision == ("bfloat16" if expected else "float32")
    words = f"bfloat16 ({expected or 'without instructions for it, slower than float32'})"
    assert devices.describe_precision("bfloat16", CPU) == words
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # macOS
    assert devices.has_bfloat16(CPU) is False
    assert setup.settle_precision(RunConfig(), CPU, recorded=None).precision == "float32"


@pytest.mark.parametrize(
    ("asked", "recorded", "expected"),
    [
        ("auto", None, "bfloat16"), ("float32", None, "float32"), ("float64", None, "float64"),
        ("auto", "bfloat16", "bfloat16"), ("auto", "float32", "float32"), ("auto", "float64", "float64"),
        ("float32", "bfloat16", "float32"),  # which claiming the folder refuses
        # of an earlier version
        ("auto", "auto", "auto"), ("float32", "auto", "auto"), ("bfloat16", "auto", "bfloat16"),
    ],
)  # fmt: skip
def test_a_run_keeps_its_precision(
    asked: str, recorded: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "bfloat16_instructions", lambda device: "AMX")
    chosen = config.override(RunConfig(), [f"precision={asked}"])
    assert setup.settle_precision(chosen, CPU, recorded=recorded).precision == expected
    with pytest.raises(ConfigError, match=r"^precision=half: expected one of auto"):
        setup.settle_precision(RunConfig(), CPU, recorded="half")


@pytest.mark.parametrize("channels", [4, 8, 12, 16])
def test_narrow_shortcuts_have_the_right_gradients_on_a_cpu(channels: int) -> None:
    """Of 48 pixels and more, those of fewer than 16 channels crash in channels last (oneDNN, issue 6035)."""
    torch.manual_seed(0)
    shortcut = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
    exact = copy.deepcopy(shortcut).double()
    devices.MixedPrecision.choose("float32", torch.device("cpu")).place(shortcut)
    x = torch.randn(8, channels, 48, 48)
    y = shortcut(x.to(memory_format=torch.channels_last).requires_grad_())
    assert y.is_contiguous() == (channels < 16)  # else the next line would end the process
    y.square().mean().backward()
    exact(x.double()).square().mean().backward()
    torch.testing.assert_close(shortcut.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-7)


def test_precisions(tmp_path: Path, digits: Source) -> None:
    assert devices.choose_precision("auto", CPU) == "float32"
    for precision, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        loop = setup.prepare(configure(f"precision={precision}"), source=digits, device=CPU, display=QUIET)
        assert {p.dtype for p in loop.method.parameters()} == {dtype} and loop.precision.forward is None
    half = setup.prepare(configure("precision=bfloat16"), source=digits, device=CPU, display=QUIET)
    assert {p.dtype for p in half.method.parameters()} == {torch.float32} and half.precision.forward == torch.bfloat16
    pretrain(tmp_path / "half", configure("precision=bfloat16", steps=2), digits)
    pretrain(tmp_path / "full", configure("precision=float32", steps=2), digits)
    losses = [[line["loss"] for line in timeless(tmp_path / name)] for name in ("half", "full")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.slow
def test_a_longer_run_keeps_no_file_open_and_no_tensor(tmp_path: Path, digits: Source) -> None:
    """A hundred steps with twenty-five checkpoints."""
    forward = f"""
        import gc, os, torch
        with open({str(tmp_path / "kept.txt")!r}, "a+") as file:
            file.seek(0)
            look = len(file.readlines()) in (40, 98)
            tensors = sum(type(x) is torch.Tensor for x in gc.get_objects()) if look else 0
            print(len(os.listdir("/proc/self/fd")), tensors, file=file)
        return super().forward(view1, view2)
    """
    if not Path("/proc/self/fd").exists():
        pytest.skip("counting open files needs /proc")
    small = ("batch_size=16", "data.subset=320", "checkpoint_every=4", "log_every=10")  # 20 steps an epoch
    settings = configure(method_file(tmp_path, forward), *small)
    pretrain(tmp_path, dataclasses.replace(settings, epochs=5), digits)
    kept = [[int(n) for n in line.split()] for line in (tmp_path / "kept.txt").read_text().splitlines()]
    assert len(kept) == 100
    assert max(handles for handles, _ in kept) - kept[0][0] <= 1
    assert kept[40][1] == kept[98][1] > 0
