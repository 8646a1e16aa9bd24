"""Checkpoints from elsewhere that unfold, unpack or wait without end."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from matrix_ssl.encoder.reading import read_tensors
from matrix_ssl.errors import CheckpointError


def test_groups_that_name_each_other_are_refused(tmp_path: Path) -> None:
    group: dict[str, object] = {"w": torch.zeros(1)}
    for _ in range(7):
        group = {str(number): group for number in range(200)}
    torch.save(group, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="more than 100,000 names"):
        read_tensors(tmp_path / "x.pth")


def test_a_group_in_itself_is_refused_or_read(tmp_path: Path) -> None:
    group: dict[str, object] = {"w": torch.zeros(1)}
    group["self"] = group
    torch.save(group, tmp_path / "x.pth")
    assert len(read_tensors(tmp_path / "x.pth").tensors) == 8  # as deep as groups are read


def test_a_tensor_that_repeats_few_numbers_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**9)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="repeats few numbers"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize(("tensor", "kind"), [
    (torch.empty(3, device="meta"), "nothing but its shape"),
    (torch.eye(3).to_sparse(), "sparse, quantised or nested numbers"),
])  # fmt: skip
def test_tensors_that_are_not_dense_are_refused(tmp_path: Path, tensor: torch.Tensor, kind: str) -> None:
    torch.save({"w": torch.zeros(1), "v": tensor}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"v holds {kind}; save it as a dense tensor"):
        read_tensors(tmp_path / "x.pth")


def test_a_small_tensor_that_repeats_numbers_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3).expand(4, 3)}, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth").tensors["w"].tolist() == [[0, 1, 2]] * 4


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10**5)}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as old,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert len(read_tensors(tmp_path / "x.pth").tensors["w"]) == 10**5
    with pytest.raises(CheckpointError, match="is compressed"):
        read_tensors(tmp_path / "y.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("device", [False, True])
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path, name: str, device: bool) -> None:
    if device:
        (tmp_path / name).symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="pipe, a device"):
        read_tensors(tmp_path / name)
