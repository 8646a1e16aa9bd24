"""Checkpoint files: what is read from them, and that nothing in them is ever executed."""

import argparse
import collections
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from matrix_ssl.encoder.reading import read_tensors
from matrix_ssl.errors import CheckpointError
from tests.conftest import unprivileged

STATE = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "bn1.bias": torch.ones(2)}
FORMS = {"zip": True, "legacy": False}
each_form = pytest.mark.parametrize("form", FORMS)


def save(value: object, path: Path, form: str = "zip") -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=FORMS[form])
    return path


def check_state(found: dict[str, torch.Tensor], prefix: str = "") -> None:
    assert found.keys() == {prefix + name for name in STATE}
    assert all(torch.equal(found[prefix + name], tensor) for name, tensor in STATE.items())


class TestWhatIsRead:
    @each_form
    def test_a_state_dict(self, tmp_path: Path, form: str) -> None:
        contents = read_tensors(save(STATE, tmp_path / "x.pth", form))
        check_state(contents.tensors)
        assert not contents.lightning and contents.metadata == {} and len(contents.sha256) == 64

    @each_form
    def test_what_training_programs_put_beside_the_weights(
        self, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def exclude_bias_and_norm() -> None: ...

        exclude_bias_and_norm.__module__, exclude_bias_and_norm.__qualname__ = "__main__", "exclude_bias_and_norm"
        monkeypatch.setattr(sys.modules["__main__"], "exclude_bias_and_norm", exclude_bias_and_norm, raising=False)
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        optimizer = torch.optim.SGD([weight], lr=np.float64(0.03), momentum=0.9)
        optimizer.step()
        state = optimizer.state_dict()
        state["param_groups"][0]["weight_decay_filter"] = exclude_bias_and_norm  # Barlow Twins, VICReg
        arguments = argparse.Namespace(arch="resnet50", data=Path("/data"), best=np.float32(1), size=np.int64(2))
        checkpoint = {
            "epoch": 100,
            "arch": "resnet50",
            "state_dict": collections.OrderedDict(STATE),
            "optimizer": state,
            "scaler": {"scale": torch.tensor(65536.0)},
            "args": arguments,
            "best_acc1": np.float64(67.1),
            "groups": collections.defaultdict(dict, a={"b": 1}),
        }
        check_state(read_tensors(save(checkpoint, tmp_path / "x.pth.tar", form)).tensors, "state_dict.")

    def test_settings_of_solo_learn(self, tmp_path: Path) -> None:
        omegaconf = pytest.importorskip("omegaconf")
        settings = omegaconf.OmegaConf.create(
            {"method": "byol", "backbone": {"name": "resnet18", "kwargs": {}}, "a": [1]}
        )
        checkpoint = {"state_dict": STATE, "hyper_parameters": settings, "pytorch-lightning_version": "2.1.2"}
        contents = read_tensors(save(checkpoint, tmp_path / "last.ckpt"))
        check_state(contents.tensors, "state_dict.")
        assert contents.lightning

    @pytest.mark.parametrize("module", ["pytorch_lightning.utilities.parsing", "lightning.fabric.utilities.data"])
    def test_settings_of_lightning(self, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
        class AttributeDict(dict): ...

        AttributeDict.__module__, AttributeDict.__qualname__ = module, "AttributeDict"
        packages = module.split(".")
        for i in range(len(packages)):  # importing Lightning itself takes ten seconds
            stand_in = types.ModuleType(".".join(packages[: i + 1]))
            monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
        monkeypatch.setattr(stand_in, "AttributeDict", AttributeDict, raising=False)
        checkpoint = {"state_dict": STATE, "hyper_parameters": AttributeDict(lr=0.1), "loops": {"a": {"b": 1}}}
        check_state(read_tensors(save(checkpoint, tmp_path / "last.ckpt")).tensors, "state_dict.")

    def test_safetensors_by_any_name(self, tmp_path: Path) -> None:
        for name in ("x.safetensors", "x.bin"):
            ours = {"architecture": "resnet18", "weights": "student", "method": "mec"}
            for metadata, kept in ((ours, ours), ({"architecture": "ResNet", "format": "pt"}, {})):
                save_file(STATE, tmp_path / name, metadata)
                contents = read_tensors(tmp_path / name)
                check_state(contents.tensors)
                assert contents.metadata == kept


class Command:
    """Pickles as a call: whoever unpickles it runs the command."""

    def __init__(self, call: object, *arguments: object):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.arguments


ATTACKS = {
    "os.system": lambda mark: Command(os.system, f"touch {mark}"),
    "eval": lambda mark: Command(eval, f"open({str(mark)!r}, 'w').close()"),
    "Path.touch": lambda mark: Command(Path.touch, mark),
    "open": lambda mark: Command(open, str(mark), "w"),
    "numpy.load": lambda mark: Command(np.load, str(mark)),
    "torch.save": lambda mark: Command(torch.save, 1, str(mark)),
}


class TestNothingIsExecuted:
    @each_form
    @pytest.mark.parametrize("attack", ATTACKS)
    @pytest.mark.parametrize("place", ["alone", "beside the weights", "in the settings"])
    def test_malicious_files(self, tmp_path: Path, form: str, attack: str, place: str) -> None:
        mark = tmp_path / "executed"
        evil = ATTACKS[attack](mark)
        value = {
            "alone": evil,
            "beside the weights": {"state_dict": STATE, "epoch": evil},
            "in the settings": {"state_dict": STATE, "args": argparse.Namespace(lr=evil)},
        }[place]
        path = save(value, tmp_path / "x.pth", form)
        with pytest.raises(CheckpointError, match="it was refused and nothing was executed") as caught:
            read_tensors(path)
        assert "save the weights alone in the program that wrote it" in str(caught.value)
        assert not mark.exists()

    def test_the_attacks_are_real(self, tmp_path: Path) -> None:
        """A guard for the test above: the unrestricted reader does run them."""
        for attack in ("os.system", "eval", "Path.touch"):
            mark = tmp_path / attack
            torch.load(save({"x": ATTACKS[attack](mark)}, tmp_path / "x.pth"), weights_only=False)
            assert mark.exists()

    @pytest.mark.parametrize("protocol", range(6))
    def test_a_bare_pickle(self, tmp_path: Path, protocol: int) -> None:
        mark = tmp_path / "executed"
        (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": Command(os.system, f"touch {mark}")}, protocol=protocol))
        with pytest.raises(CheckpointError, match=r"refused|is not a file of weights"):
            read_tensors(tmp_path / "x.pth")
        assert not mark.exists()

    def test_a_whole_module_is_refused_by_name(self, tmp_path: Path) -> None:
        path = save(nn.Linear(2, 2), tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"needs 'torch.nn.modules.linear.Linear'"):
            read_tensors(path)

    def test_no_name_stays_allowed(self, tmp_path: Path) -> None:
        before = set(torch.serialization.get_safe_globals())
        read_tensors(save(STATE, tmp_path / "x.pth"))
        assert set(torch.serialization.get_safe_globals()) == before


class TestFilesThatAreNone:
    def refused(self, path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            read_tensors(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
    def test_absent_empty_folder(self, tmp_path: Path, name: str) -> None:
        assert "does not exist" in self.refused(tmp_path / name)
        (tmp_path / name).touch()
        assert "is empty" in self.refused(tmp_path / name)
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        assert "is a folder; name the file in it" in self.refused(tmp_path / name)

    def test_unreadable(self, open_folder: Path) -> None:
        path = save(STATE, open_folder / "x.pth")
        path.chmod(0o200)
        with unprivileged():
            assert "no permission to read the file" in self.refused(path)

    @each_form
    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
    def test_cut(self, tmp_path: Path, form: str, part: float) -> None:
        path = save({"state_dict": {"a": torch.rand(200, 20)}}, tmp_path / "x.pth", form)
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        assert "or is damaged" in self.refused(path)

    @each_form
    def test_altered_bytes_are_an_error_or_change_values_alone(self, tmp_path: Path, form: str) -> None:
        content = save(STATE, tmp_path / "whole.pth", form).read_bytes()
        random = np.random.default_rng(0)
        outcomes = set()
        for _ in range(60):
            altered = bytearray(content)
            altered[random.integers(len(altered))] ^= 1 << random.integers(8)
            (tmp_path / "x.pth").write_bytes(altered)
            try:
                outcomes.add(type(read_tensors(tmp_path / "x.pth")))
            except CheckpointError as error:
                outcomes.add(type(error))
        assert CheckpointError in outcomes

    @pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n <html lang='en'>", b"<?xml version='1.0'?>"])
    def test_a_web_page(self, tmp_path: Path, page: bytes) -> None:
        (tmp_path / "x.pth").write_bytes(page)
        assert "is a web page, not a checkpoint" in self.refused(tmp_path / "x.pth")

    def test_a_pointer(self, tmp_path: Path) -> None:
        (tmp_path / "x.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert "git lfs pull" in self.refused(tmp_path / "x.pth")

    @pytest.mark.parametrize("value", [{}, [1, 2], {"a": 1}, torch.ones(3), {3: torch.ones(1)}, {"optimizer": STATE}])
    def test_no_tensors_with_names(self, tmp_path: Path, value: object) -> None:
        assert "holds no tensors with names" in self.refused(save(value, tmp_path / "x.pth"))

    def test_other_files(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", a=np.ones(3))
        (tmp_path / "x.txt").write_text("weights")
        for name in ("x.npz", "x.txt"):
            assert "is not a file of weights" in self.refused(tmp_path / name)
