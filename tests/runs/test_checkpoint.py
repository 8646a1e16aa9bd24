"""Checkpoints come back bit by bit, and damage of every kind is noticed."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn

from matrix_ssl.errors import CheckpointError, RunFolderError
from matrix_ssl.runs.checkpoint import (
    Checkpoint,
    encode,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    load_strictly,
    read_safetensors,
    save_checkpoint,
    save_weights,
)
from tests.conftest import unprivileged


def make_checkpoint(step: int, *, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW) -> Checkpoint:
    """The state of a small network with BatchNorm after two real updates."""
    torch.manual_seed(step)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2, dtype=torch.float32))
    model.to(memory_format=torch.channels_last)
    updates = optimizer(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.randn(5, 3, 4, 4)).square().sum().backward()
        updates.step()
    return Checkpoint(step, model.state_dict(), updates.state_dict(), {"bad_steps": 1, "seconds": 0.1 + step})


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    assert (found.step, found.counters) == (expected.step, expected.counters)
    assert found.model.keys() == expected.model.keys()
    for name, tensor in expected.model.items():
        assert found.model[name].dtype == tensor.dtype and found.model[name].shape == tensor.shape
        assert torch.equal(found.model[name], tensor)
    groups = json.loads(json.dumps(expected.optimizer["param_groups"]))
    assert found.optimizer["param_groups"] == groups
    kept = {i: {k: v for k, v in s.items() if v is not None} for i, s in expected.optimizer["state"].items()}
    assert found.optimizer["state"].keys() == {i for i, s in kept.items() if s}
    for index, state in found.optimizer["state"].items():
        assert state.keys() == kept[index].keys()
        assert all(torch.equal(state[key], kept[index][key]) for key in state)


def sgd(parameters, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def plain_sgd(parameters, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, sgd, plain_sgd])
def test_a_checkpoint_comes_back_bit_by_bit(tmp_path: Path, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    checkpoint = make_checkpoint(7, optimizer=optimizer)
    path = save_checkpoint(tmp_path, checkpoint)
    assert path == tmp_path / "checkpoints" / "step-000000007.safetensors"
    assert_equal(load_checkpoint(path), checkpoint)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (2, 3, 4, 5)])
def test_every_type_and_shape_comes_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape) * 10).to(dtype)
    path = save_checkpoint(tmp_path, Checkpoint(1, {"x": tensor}, {"state": {}, "param_groups": []}, {}))
    found = load_checkpoint(path).model["x"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape) and torch.equal(found, tensor)


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 5e-324], dtype=torch.float64)
    path = save_checkpoint(tmp_path, Checkpoint(1, {"x": tensor}, {"state": {}, "param_groups": []}, {}))
    assert load_checkpoint(path).model["x"].numpy().tobytes() == tensor.numpy().tobytes()


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (3, 6, 9, 1000):
        save_checkpoint(tmp_path, make_checkpoint(step))
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-000000009.safetensors",
        "step-000001000.safetensors",
    ]
    found, problems = load_newest(tmp_path)
    assert found is not None and (found.step, problems) == (1000, [])


def test_a_save_after_a_fall_back_removes_the_damaged_one_and_not_the_good_one(tmp_path: Path) -> None:
    for step in (6, 9):
        path = save_checkpoint(tmp_path, make_checkpoint(step))
    path.write_bytes(b"")
    save_checkpoint(tmp_path, make_checkpoint(8))
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-000000006.safetensors",
        "step-000000008.safetensors",
    ]


def test_copies_of_the_user_stay_and_are_no_checkpoints(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_checkpoint(3))
    copies = [path.with_name(f"step-{name}.safetensors") for name in ("000000003 (copy)", "best", "3", "000000003.1")]
    for copy in copies:
        copy.write_bytes(path.read_bytes())
    for step in (6, 9, 12):
        save_checkpoint(tmp_path, make_checkpoint(step))
    assert all(copy.exists() for copy in copies)
    assert [one.name for one in list_checkpoints(tmp_path)] == [
        "step-000000009.safetensors",
        "step-000000012.safetensors",
    ]
    found, problems = load_newest(tmp_path)
    assert found is not None and (found.step, problems) == (12, [])


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path) == (None, [])


def test_one_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    """In a random bit of every byte of a file: of the header, of the metadata and of the tensors."""
    optimizer = {"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    path = save_checkpoint(tmp_path, Checkpoint(3, {"w": torch.randn(4)}, optimizer, {"bad_steps": 0}))
    whole = path.read_bytes()
    draw = random.Random(0)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            load_checkpoint(path)
    path.write_bytes(whole)
    load_checkpoint(path)


def test_forty_damages_of_a_real_checkpoint_are_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_checkpoint(3))
    whole = path.read_bytes()
    draw = random.Random(1)
    for case in range(40):
        start, stop = sorted(draw.sample(range(len(whole) + 1), 2))
        damages = {
            "cut": whole[:start],
            "grown": whole + bytes(stop - start),
            "zeroed": whole[:start] + bytes(stop - start) + whole[stop:],
            "missing middle": whole[:start] + whole[stop:],
            "doubled": whole[:stop] + whole[start:],
        }
        name = sorted(damages)[case % len(damages)]
        if damages[name] == whole:
            continue
        path.write_bytes(damages[name])
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"\0", b"\0" * 4096, b"text", b"PK\x03\x04" + b"x" * 100, b"\x80\x04}."])
def test_other_files_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "step-000000003.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-000000003\.safetensors is damaged"):
        load_checkpoint(path)


def test_a_file_of_another_program_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "step-000000003.safetensors")
    with pytest.raises(CheckpointError, match="is not a checkpoint of this package"):
        load_checkpoint(tmp_path / "step-000000003.safetensors")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.safetensors does not exist"):
        read_safetensors(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        read_safetensors(tmp_path)


def test_a_file_without_permission_is_named(open_folder: Path) -> None:
    path = save_checkpoint(open_folder, make_checkpoint(3))
    path.chmod(0o000)
    with unprivileged(), pytest.raises(CheckpointError, match=r"step-000000003\.safetensors cannot be read"):
        load_checkpoint(path)


def test_the_one_before_serves_when_the_newest_is_damaged(tmp_path: Path) -> None:
    older = make_checkpoint(6)
    save_checkpoint(tmp_path, older)
    newest = save_checkpoint(tmp_path, make_checkpoint(9))
    newest.write_bytes(newest.read_bytes()[:-1])
    found, (problem,) = load_newest(tmp_path)
    assert found is not None and str(newest) in problem and "damaged" in problem
    assert_equal(found, older)


def test_with_all_damaged_every_one_is_named_with_the_remedy(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, make_checkpoint(step)) for step in (6, 9)]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="--fresh") as caught:
        load_newest(tmp_path)
    assert all(str(path) in str(caught.value) for path in paths)


def test_swapped_names_are_noticed(tmp_path: Path) -> None:
    older, newest = (save_checkpoint(tmp_path, make_checkpoint(step)) for step in (6, 9))
    contents = newest.read_bytes(), older.read_bytes()
    older.write_bytes(contents[0])
    newest.write_bytes(contents[1])
    with pytest.raises(CheckpointError, match=r"holds step 6: rename it to step-000000006\.safetensors"):
        load_checkpoint(newest)
    with pytest.raises(CheckpointError, match="holds step 9"):
        load_newest(tmp_path)


def test_a_full_disk_keeps_the_older_checkpoint(small_disk: Path) -> None:
    checkpoint = make_checkpoint(6)
    save_checkpoint(small_disk, checkpoint)
    large = Checkpoint(9, {"w": torch.zeros(500_000)}, {"state": {}, "param_groups": []}, {})
    with pytest.raises(RunFolderError, match=r"step-000000009\.safetensors: No space left on device"):
        save_checkpoint(small_disk, large)
    assert {p.name for p in (small_disk / "checkpoints").iterdir()} == {"step-000000006.safetensors"}
    found, _ = load_newest(small_disk)
    assert found is not None
    assert_equal(found, checkpoint)


def test_a_folder_without_permission_is_named(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    with unprivileged(), pytest.raises(RunFolderError, match=r"Cannot write .*checkpoints: Permission denied"):
        save_checkpoint(open_folder, make_checkpoint(3))
    assert not list(open_folder.iterdir())


def test_saved_weights_load_elsewhere_and_damage_is_noticed(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    save_weights(tmp_path / "encoder.safetensors", module, {"weights": "student"})
    tensors, metadata = read_safetensors(tmp_path / "encoder.safetensors")
    assert metadata["weights"] == "student"
    assert all(torch.equal(tensors[name], value) for name, value in module.state_dict().items())
    content = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    content[-1] ^= 1  # the last bit of a weight
    (tmp_path / "encoder.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors is damaged"):
        read_safetensors(tmp_path / "encoder.safetensors")


def test_weights_that_share_memory_come_back_under_every_name(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        module[2].weight = module[0].weight
        return module

    flat = torch.arange(6.0)
    module, again = tied(), tied()
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    saved = {**module.state_dict(), "first": flat[:3], "last": flat[3:]}
    save_checkpoint(tmp_path, Checkpoint(1, saved, optimizer.state_dict(), {}, {}))
    found, _ = load_newest(tmp_path)
    assert found is not None and found.model.keys() == saved.keys()
    assert all(torch.equal(found.model[name], saved[name]) for name in saved)
    load_strictly(again, {name: found.model[name] for name in again.state_dict()}, "the checkpoint")
    assert torch.equal(again[2].weight, module[0].weight) and again[2].weight is again[0].weight


def test_the_same_tensors_give_the_same_bytes() -> None:
    tensors = {name: torch.arange(n + 1.0) for n, name in enumerate(("b", "ä", "a.weight"))}
    metadata = {key: key * 3 for key in "zyxwvut"}
    (content,) = {encode(tensors, metadata) for _ in range(20)}
    found = load(content)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0  # what the format asks for


def test_weights_must_fit_name_by_name() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    load_strictly(module, before, "itself")
    changed = {k: v for k, v in before.items() if k != "0.bias"} | {
        "0.weight": torch.ones(4, 3),
        "0.bais": torch.ones(2),
    }
    with pytest.raises(CheckpointError) as caught:
        load_strictly(module, changed, "the file")
    assert str(caught.value) == (
        "the file matches 5 of 7 tensors of the network; 1 missing: 0.bias; 1 not in the network: 0.bais; "
        "1 of another shape: 0.weight (4, 3) instead of (2, 3). Did you mean '0.bais'?"
    )
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_long_lists_of_names_are_shortened() -> None:
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    with pytest.raises(CheckpointError, match=r"20 missing: 0\.bias, .* and 12 more\.$"):
        load_strictly(module, {}, "the file")
