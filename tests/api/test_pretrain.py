"""Pre-training in Python: settings, resuming, callbacks, signals, encoders and methods of a program."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import matrix_ssl
from matrix_ssl.api.pretraining import pretrain
from matrix_ssl.encoder import load_encoder
from matrix_ssl.errors import CheckpointError, ConfigError, DataError, RunFolderError
from matrix_ssl.methods.simclr import SimCLR
from matrix_ssl.networks import forget_encoder
from matrix_ssl.runs import devices
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import read_config
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training import setup
from tests.api.conftest import LABELS, PIXELS, TINY
from tests.support import runs

BROKEN = RuntimeError("of the user")


def weights(run: str | Path) -> dict[str, Tensor]:
    return load_encoder(run).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_at(step: int, action: Any) -> Any:
    """A callback that acts at a step."""

    def callback(line: dict[str, Any]) -> None:
        if line["step"] == step:
            action()

    return callback


def fail() -> None:
    raise BROKEN


class Net(nn.Module):
    """An encoder of a program."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


class OwnMethod(SimCLR):
    """A method of a program."""


class TestSettings:
    def test_keywords_are_settings_by_their_last_name(self) -> None:
        config = matrix_ssl.open("of_array").config
        assert (config.data.image_size, config.network.width, config.optimizer.warmup_epochs) == (16, 8, 0)
        assert (config.method.options["hidden_dim"], config.batch_size, config.data.source) == (16, 16, "memory:array")

    def test_settings_by_their_whole_names(self, tmp_path: Path) -> None:
        chosen = {"view1.blur": 0.25, "data.crop_fraction": np.float64(0.5), "views.1.crop_scale": (0.5, 1)}
        config = pretrain(PIXELS, out=tmp_path / "r", settings=chosen, **TINY).config
        assert (config.views[0].blur, config.data.crop_fraction) == (0.25, 0.5)
        assert config.views[1].crop_scale == (0.5, 1.0)
        texts = ["view1.blur=0.25", "data.crop_fraction=0.5", "view2.crop_scale=0.5,1"]
        assert pretrain(PIXELS, out=tmp_path / "r", settings=texts, **TINY).config == config

    @pytest.mark.parametrize(("words", "assignment"), [
        ({"epoch": 3}, "epoch=3"), ({"epochs": "ten"}, "epochs=ten"), ({"epochs": 2.5}, "epochs=2.5"),
        ({"image_size": 0}, "data.image_size=0"), ({"hiden_dim": 3}, "hiden_dim=3"),
        ({"settings": {"view1.blurr": 1}}, "view1.blurr=1"), ({"settings": ["epochs"]}, "epochs"),
        ({"hidden_dim": "wide"}, "method.hidden_dim=wide"),
    ])  # fmt: skip
    def test_a_mistake_is_the_error_of_the_command_line(self, words: dict[str, Any], assignment: str) -> None:
        with pytest.raises(ConfigError) as theirs:
            from matrix_ssl.training.configure import configure

            configure("images", "photos", (assignment,))
        with pytest.raises(ConfigError) as ours:
            pretrain("photos", **words)
        assert str(ours.value) == str(theirs.value)

    def test_a_name_that_several_settings_have(self) -> None:
        with pytest.raises(ConfigError, match=r"blur is a setting of views.0.blur and views.1.blur: write settings={"):
            pretrain("photos", blur=0.5)

    @pytest.mark.parametrize(("words", "message"), [
        ({"encoder": "resnet19"}, "'resnet19' is not an architecture"),
        ({"encoder": Net(), "start": "random/resnet18"}, "both weights to start from"),
        ({"encoder": "torchvision/resnet18", "start": "of_folder"}, "both weights to start from"),
        ({"encoder": nn.Identity()}, r"has features of shape \(2, 3, 32, 32\), expected"),
        ({"method": "simclrr"}, "Did you mean 'simclr'"), ({"method": Net}, "expected a name, a Python file or"),
        ({"recipe": "imags"}, "Did you mean 'images'"), ({"device": "tpu"}, "device=tpu: expected auto, cpu, cuda or"),
    ])  # fmt: skip
    def test_other_mistakes(self, words: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=message):
            pretrain("photos", out=tmp_path / "r", quiet=True, batch_size=16, **words)
        assert not (tmp_path / "r").exists()


class TestResuming:
    def test_the_same_call_returns_the_finished_run(self) -> None:
        before = {path: path.stat().st_mtime_ns for path in Path("of_array").iterdir() if path.name != ".lock"}
        run = pretrain((PIXELS, LABELS), out="of_array", **TINY)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert len(run.embed(quiet=True)) == 40

    def test_other_data_or_settings_are_refused(self) -> None:
        changed = PIXELS.copy()
        changed[-1, -1, -1, -1] ^= 1
        with pytest.raises(RunFolderError, match="data are different"):
            pretrain((changed, LABELS), out="of_array", **TINY)
        with pytest.raises(RunFolderError, match="epochs: 2 -> 3"):
            pretrain((PIXELS, LABELS), out="of_array", **TINY | {"epochs": 3})

    def test_fresh_starts_over(self, tmp_path: Path) -> None:
        pretrain(PIXELS[:32], out=tmp_path / "r", **TINY)
        pretrain(PIXELS, out=tmp_path / "r", fresh=True, **TINY)
        assert read_config(tmp_path / "r").data.images == 40 and read_config(tmp_path / "r.1").data.images == 32

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(PIXELS, id="array"), pytest.param("photos", id="folder", marks=pytest.mark.slow),
            pytest.param(list(PIXELS), id="items", marks=pytest.mark.slow),
        ],
    )  # fmt: skip
    def test_a_run_that_was_stopped_ends_with_the_same_bits(self, data: Any, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="of the user"):
            pretrain(data, out=tmp_path / "r", callback=stop_at(1, fail), **TINY)
        assert [path.name for path in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-000000001.safetensors"]
        pretrain(data, out=tmp_path / "r", **TINY)
        pretrain(data, out=tmp_path / "whole", **TINY)
        assert same(weights(tmp_path / "r"), weights(tmp_path / "whole"))

    def test_a_run_goes_on_in_the_precision_that_auto_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """By the processor, and where the run is of a version in which it was float32 on every processor."""
        words = {key: value for key, value in TINY.items() if key not in ("precision", "quiet")}
        for first, second, kept in (("AMX", "", "bfloat16"), ("", "AMX", "float32"), ("earlier", "AMX", "auto")):
            run = tmp_path / kept
            with monkeypatch.context() as patch:
                patch.setattr(devices, "bfloat16_instructions", lambda device, name=first: name)
                if first == "earlier":  # its config.json says auto
                    patch.setattr(setup, "settle_precision", lambda config, device, recorded: config)
                with pytest.raises(RuntimeError, match="of the user"):
                    pretrain(PIXELS, out=run, callback=stop_at(1, fail), **words)
            assert read_json(run / "config.json")["precision"] == kept
            monkeypatch.setattr(devices, "bfloat16_instructions", lambda device, name=second: name)
            shown = "bfloat16 (without instructions for it, slower than float32)" if kept == "bfloat16" else "float32"
            capfd.readouterr()
            assert pretrain(PIXELS, out=run, **words).config.precision == kept
            assert f"thread, {shown}, 1 process\n" in capfd.readouterr().err.replace("threads", "thread")
            whole = TINY | {"precision": "bfloat16" if kept == "bfloat16" else "float32"}
            assert same(weights(run), weights(pretrain(PIXELS, out=tmp_path / f"{kept}-whole", **whole).folder))
        assert not same(weights(tmp_path / "float32"), weights(tmp_path / "bfloat16"))
        with pytest.raises(RunFolderError, match="precision: 'bfloat16' -> 'float32'"):
            pretrain(PIXELS, out=tmp_path / "bfloat16", **words, precision="float32")

    def test_a_folder_by_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "photos").symlink_to(Path("photos").resolve())
        monkeypatch.chdir(tmp_path)
        assert pretrain("photos", method=OwnMethod, **TINY).folder == Path("runs/photos-OwnMethod")
        assert pretrain(PIXELS, **TINY).folder == Path("runs/array")


class TestCallback:
    def test_it_sees_every_line_and_cannot_change_it(self, tmp_path: Path) -> None:
        lines: list[dict[str, Any]] = []

        def callback(line: dict[str, Any]) -> None:
            lines.append(dict(line))
            line.clear()

        run = pretrain(PIXELS, out=tmp_path / "r", callback=callback, **TINY)
        assert lines == run.metrics and len(lines) == 4
        assert same(weights(run.folder), weights(pretrain(PIXELS, out=tmp_path / "s", **TINY).folder))

    def test_an_error_after_the_last_step_leaves_a_run_that_can_be_finished(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError) as error:
            pretrain(PIXELS, out=tmp_path / "r", callback=stop_at(4, fail), **TINY)
        assert error.value is BROKEN and not (tmp_path / "r" / "encoder.safetensors").exists()
        assert pretrain(PIXELS, out=tmp_path / "r", **TINY).summary["steps"] == 4


class TestSignals:
    @pytest.fixture(autouse=True)
    def interruptible(self) -> Iterator[None]:
        """Python's own handler, also where a shell has started the tests in the background, without SIGINT."""
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, previous)

    def test_ctrl_c_is_keyboard_interrupt_after_a_checkpoint(self, tmp_path: Path) -> None:
        callback = stop_at(1, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match=r"Stopped by SIGINT after step 2\."):
            pretrain(PIXELS, out=tmp_path / "r", callback=callback, **TINY)
        assert (tmp_path / "r" / "checkpoints" / "step-000000002.safetensors").exists()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert pretrain(PIXELS, out=tmp_path / "r", **TINY).summary["steps"] == 4

    def test_ctrl_c_in_the_last_step_is_not_lost(self, tmp_path: Path) -> None:
        callback = stop_at(4, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            pretrain(PIXELS, out=tmp_path / "r", callback=callback, **TINY)
        assert (tmp_path / "r" / "summary.json").exists()

    def test_a_signal_reaches_the_handler_of_the_program(self, tmp_path: Path) -> None:
        seen: list[bool] = []
        folder = tmp_path / "r" / "checkpoints"
        before = signal.signal(signal.SIGTERM, lambda *_: seen.append(folder.exists()))
        try:
            with pytest.raises(Interrupted, match="Stopped by SIGTERM after step 2"):
                pretrain(PIXELS, out=tmp_path / "r", callback=stop_at(1, lambda: signal.raise_signal(15)), **TINY)
        finally:
            signal.signal(signal.SIGTERM, before)
        assert seen == [True]

    def test_sigterm_ends_a_program_that_catches_every_error_in_a_loop(self, tmp_path: Path) -> None:
        program = "\n".join([
            "import os, sys, matrix_ssl",
            "for seed in range(3):",
            "    try:",
            f"        matrix_ssl.pretrain('digits', recipe='demo', out=f'r{{seed}}', seed=seed, **{PROGRAM!r},",
            "                            callback=lambda line: os.kill(os.getpid(), 15))",
            "    except Exception as error:",
            "        print(error, file=sys.stderr)",
            "os._exit(0)",
        ])  # fmt: skip
        ended = runs.run(tmp_path, [], before=program)
        assert ended.code == -signal.SIGTERM, ended
        assert [path.name for path in tmp_path.iterdir()] == ["r0"]
        assert (tmp_path / "r0" / "checkpoints" / "step-000000002.safetensors").exists()

    def test_in_a_thread(self, tmp_path: Path) -> None:
        done: list[matrix_ssl.Run] = []
        thread = threading.Thread(target=lambda: done.append(pretrain(PIXELS, out=tmp_path / "r", **TINY)))
        thread.start()
        thread.join()
        assert same(weights(done[0].folder), weights(pretrain(PIXELS, out=tmp_path / "s", **TINY).folder))


PROGRAM = {"epochs": 1, "batch_size": 256, "width": 8, "hidden_dim": 16, "output_dim": 16, "log_every": 1,
           "device": "cpu", "quiet": True, "report": False}  # fmt: skip


def test_the_random_numbers_of_the_program_stay(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    pretrain(PIXELS, out=tmp_path / "r", **TINY)
    assert torch.equal(torch.rand(2), expected)


class TestModules:
    def test_a_module_is_trained_from_the_weights_that_it_has(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        module = Net()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        run = pretrain((PIXELS, LABELS), out=tmp_path / "r", **TINY | {"encoder": module, "learning_rate": 0.0})
        assert same(module.state_dict(), before)  # the caller's own stays
        assert torch.equal(run.encoder().body[0].weight, before["body.0.weight"])
        assert run.embed(quiet=True).features.shape == (40, 8)
        assert run.evaluate(protocols=["knn"], quiet=True, report=False, device="cpu")["knn_1"].accuracy > 0.5
        record = read_json(run.folder / "own-encoder.json")
        assert record["name"] == run.config.network.encoder and "Conv2d(3, 8" in record["structure"]

    def test_another_process_asks_for_a_module_of_the_same_structure(self, tmp_path: Path) -> None:
        run = pretrain(PIXELS, out=tmp_path / "r", **TINY | {"encoder": Net()})
        features = run.embed(quiet=True).features
        forget_encoder(run.config.network.encoder)  # as a new process begins
        with pytest.raises(ConfigError, match=r"is a torch.nn.Module of a program.*open\(RUN, encoder=MODULE\)"):
            matrix_ssl.open(run.folder).encoder()
        with pytest.raises(CheckpointError, match=r"matches 1 of 7 tensors of the network; 6 of another shape"):
            matrix_ssl.open(run.folder, encoder=Net(9))
        with pytest.raises(ConfigError, match=r"is a torch.nn.Module of a program"):
            matrix_ssl.open(run.folder).encoder()
        again = matrix_ssl.open(run.folder, encoder=Net())
        assert np.array_equal(again.embed(PIXELS, quiet=True).features, features)

    def test_resuming(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        torch.manual_seed(1)
        with pytest.raises(RuntimeError):
            pretrain(PIXELS, out=tmp_path / "r", callback=stop_at(2, fail), **TINY | {"encoder": Net()})
        loud = TINY | {"quiet": False}
        pretrain(PIXELS, out=tmp_path / "r", **loud | {"encoder": Net()})  # of other random weights
        assert "different weights than at the start of this run. Those of the start count." in capsys.readouterr().err
        torch.manual_seed(1)
        pretrain(PIXELS, out=tmp_path / "whole", **loud | {"encoder": Net()})
        assert "different weights" not in capsys.readouterr().err
        final = [matrix_ssl.open(tmp_path / name).encoder().state_dict() for name in ("r", "whole")]
        assert same(*final)
        with pytest.raises(RunFolderError, match=r"network.encoder: 'module:Net-\w+' -> 'module:Net-\w+'"):
            pretrain(PIXELS, out=tmp_path / "r", **TINY | {"encoder": Net(9)})


class TestMethods:
    def test_a_class_of_a_program(self, tmp_path: Path) -> None:
        run = pretrain(PIXELS, out=tmp_path / "r", method=OwnMethod, **TINY | {"temperature": 0.3})
        assert run.config.method.name == "tests.api.test_pretrain:OwnMethod"
        assert run.config.method.options["temperature"] == 0.3
        assert (
            'class OwnMethod(SimCLR):\n    """A method of a program."""' in (run.folder / "own-method.py").read_text()
        )
        named = pretrain(PIXELS, out=tmp_path / "s", method=SimCLR, **TINY | {"temperature": 0.3})
        assert named.config.method.name == "simclr" and same(weights(run.folder), weights(named.folder))
        assert not (named.folder / "own-method.py").exists()

    def test_a_class_on_the_command_line(self) -> None:
        from matrix_ssl.training.configure import configure

        with pytest.raises(ConfigError, match="is a class of a program: in Python, pass it as method="):
            configure("images", "photos", (), method="elsewhere:Own")

    def test_a_file_that_has_changed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "own.py"
        text = "from matrix_ssl.methods.simclr import SimCLR\n\n\nclass Own(SimCLR):\n    pass\n"
        file.write_text(text)
        words = TINY | {"quiet": False, "method": str(file), "out": tmp_path / "r"}
        pretrain(PIXELS, **words)
        assert (tmp_path / "r" / "own-method.py").read_text() == text and "differs from" not in capsys.readouterr().err
        file.write_text(f"{text}# changed\n")
        pretrain(PIXELS, **words)
        assert "the source of the method differs from" in capsys.readouterr().err.replace("\n", " ")


class TestStart:
    def test_from_a_run(self, tmp_path: Path) -> None:
        words = {key: value for key, value in TINY.items() if key not in ("encoder", "image_size", "width")}
        for chosen in ({"start": "of_folder"}, {"encoder": "of_folder"}, {"start": Path("of_folder")}):
            run = pretrain(PIXELS, out=tmp_path / "r", learning_rate=0.0, **words, **chosen)
        assert (run.config.start.reference, run.config.data.image_size) == (str(Path("of_folder").absolute()), 16)
        assert torch.equal(run.encoder().stem[0].weight, matrix_ssl.open("of_folder").encoder().stem[0].weight)

    def test_random_is_an_architecture(self, tmp_path: Path) -> None:
        run = pretrain(PIXELS, out=tmp_path / "r", **TINY | {"encoder": "random/tiny_resnet"})
        assert (run.config.network.encoder, run.config.start.reference) == ("tiny_resnet", "")


def test_data_that_do_not_exist() -> None:
    with pytest.raises(DataError, match=r"'photo' is not a file or folder here.*Did you mean 'photos'"):
        pretrain("photo", **TINY)
