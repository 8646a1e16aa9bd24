"""Encoders of run folders: what is built and loaded, and what is refused."""

import pytest
import safetensors.torch
import torch

from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.encoder import initialise_encoder, load_encoder
from matrix_ssl.errors import CheckpointError, RunFolderError
from matrix_ssl.runs.folder import CONFIG, ENCODER
from tests.support.encoder_runs import make_run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("demo") / "run", "network.width=8", base=find_recipe("demo"))


@pytest.fixture
def images():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(9))


class TestLoading:
    def test_student_and_teacher(self, demo, images):
        run, method = demo
        student, teacher = load_encoder(run), load_encoder(str(run), weights="teacher")
        assert not student.training
        assert torch.equal(student(images), method.encoder(images))
        assert torch.equal(teacher(images), method.teacher["encoder"](images))
        assert (student(images) - teacher(images)).abs().max() > 1e-4
        running = [name for name, _ in student.named_buffers() if name.endswith("running_var")]
        assert running
        assert not any(torch.equal(student.get_buffer(name), teacher.get_buffer(name)) for name in running)

    def test_leaves_the_random_numbers_of_the_caller(self, demo):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        load_encoder(demo[0])
        assert torch.equal(torch.rand(3), expected)

    def test_initialisation_is_a_function_of_the_configuration(self):
        a, b = (initialise_encoder(find_recipe("demo")) for _ in range(2))
        assert a[1] == b[1] == 64
        assert all(torch.equal(x, y) for x, y in zip(a[0].parameters(), b[0].parameters(), strict=True))

    def test_another_network_is_refused_by_name(self, demo, tmp_path):
        run, method = demo
        (tmp_path / CONFIG).write_bytes((run / CONFIG).read_bytes())
        tensors = dict(method.encoder.state_dict())
        tensors["old.weight"] = tensors.pop("stem.0.weight")
        tensors["blocks.0.residual.0.weight"] = torch.zeros(1)
        (tmp_path / ENCODER).write_bytes(safetensors.torch.save(tensors))
        with pytest.raises(CheckpointError) as caught:
            load_encoder(tmp_path)
        total = len(tensors)
        message = str(caught.value)
        assert f"matches {total - 2} of {total} tensors" in message
        assert "1 missing: stem.0.weight" in message
        assert "1 not in the network: old.weight" in message
        assert "blocks.0.residual.0.weight (1,) instead of (8, 8, 3, 3)" in message

    def test_a_run_that_is_not_finished(self, demo, tmp_path):
        (tmp_path / CONFIG).write_bytes((demo[0] / CONFIG).read_bytes())
        with pytest.raises(CheckpointError, match=r"has no encoder.safetensors yet"):
            load_encoder(tmp_path)
        with pytest.raises(CheckpointError, match=r"has no teacher"):
            load_encoder(tmp_path, weights="teacher")

    def test_a_damaged_file(self, demo, tmp_path):
        (tmp_path / CONFIG).write_bytes((demo[0] / CONFIG).read_bytes())
        (tmp_path / ENCODER).write_bytes((demo[0] / ENCODER).read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=r"encoder.safetensors is damaged"):
            load_encoder(tmp_path)

    def test_a_folder_that_is_no_run(self, tmp_path):
        with pytest.raises(RunFolderError, match=r"is not a run folder"):
            load_encoder(tmp_path)
