"""Encoders of run folders: what is loaded, and what other programs find in an exported file."""

import pytest
import safetensors.torch
import torch
import torchvision
from safetensors import safe_open
from torch import nn

from matrix_ssl import record
from matrix_ssl.checkpoint import Checkpoint, save_checkpoint, save_weights
from matrix_ssl.config import RunConfig, override, to_dict
from matrix_ssl.encoder import build_encoder, export, load_encoder
from matrix_ssl.errors import CheckpointError, ConfigError, RunFolderError
from matrix_ssl.methods.matrix_ssl import MatrixSSL
from matrix_ssl.recipes import find_recipe


def make_run(folder, *settings, base=None):
    """A run folder after a few updates of networks and teacher, without the training."""
    folder.mkdir()
    config = override(base or RunConfig(), settings)
    encoder, width = build_encoder(config)
    method = MatrixSSL(encoder, width, hidden_dim=8, output_dim=4, teacher_momentum=0.5)
    channels, size = len(config.data.mean), config.data.image_size
    for step in range(2):
        method(*torch.randn(2, 4, channels, size, size, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            for p in method.encoder.parameters():
                p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        method.after_step(0.5)
    record.write_json(folder / record.CONFIG, to_dict(config))
    save_weights(folder / record.ENCODER, method.encoder, {"weights": "student"})
    save_checkpoint(folder, Checkpoint(2, method.state_dict(), {"state": {}, "param_groups": []}, {}))
    return folder, method.eval()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("demo") / "run", "network.width=8", base=find_recipe("demo"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("resnet") / "run", "network.stem=standard", "data.image_size=32")


@pytest.fixture
def pictures():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(9))


class TestLoading:
    def test_student_and_teacher(self, demo, pictures):
        run, method = demo
        student, teacher = load_encoder(run), load_encoder(str(run), weights="teacher")
        assert not student.training
        assert torch.equal(student(pictures), method.encoder(pictures))
        assert torch.equal(teacher(pictures), method.teacher["encoder"](pictures))
        assert (student(pictures) - teacher(pictures)).abs().max() > 1e-4
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
        a, b = (build_encoder(find_recipe("demo")) for _ in range(2))
        assert a[1] == b[1] == 64
        assert all(torch.equal(x, y) for x, y in zip(a[0].parameters(), b[0].parameters(), strict=True))

    def test_another_network_is_refused_by_name(self, demo, tmp_path):
        run, method = demo
        (tmp_path / record.CONFIG).write_bytes((run / record.CONFIG).read_bytes())
        tensors = dict(method.encoder.state_dict())
        tensors["old.weight"] = tensors.pop("stem.0.weight")
        tensors["blocks.0.residual.0.weight"] = torch.zeros(1)
        (tmp_path / record.ENCODER).write_bytes(safetensors.torch.save(tensors))
        with pytest.raises(CheckpointError) as caught:
            load_encoder(tmp_path)
        total = len(tensors)
        message = str(caught.value)
        assert f"matches {total - 2} of {total} tensors" in message
        assert "1 missing: stem.0.weight" in message
        assert "1 not in the network: old.weight" in message
        assert "blocks.0.residual.0.weight (1,) instead of (8, 8, 3, 3)" in message

    def test_a_run_that_is_not_finished(self, demo, tmp_path):
        (tmp_path / record.CONFIG).write_bytes((demo[0] / record.CONFIG).read_bytes())
        with pytest.raises(CheckpointError, match=r"has no encoder.safetensors yet"):
            load_encoder(tmp_path)
        with pytest.raises(CheckpointError, match=r"has no teacher"):
            load_encoder(tmp_path, weights="teacher")

    def test_a_damaged_file(self, demo, tmp_path):
        (tmp_path / record.CONFIG).write_bytes((demo[0] / record.CONFIG).read_bytes())
        (tmp_path / record.ENCODER).write_bytes((demo[0] / record.ENCODER).read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=r"encoder.safetensors is damaged"):
            load_encoder(tmp_path)

    def test_a_folder_that_is_no_run(self, tmp_path):
        with pytest.raises(RunFolderError, match=r"is not a run folder"):
            load_encoder(tmp_path)


class TestExport:
    @pytest.mark.parametrize("weights", ["student", "teacher"])
    def test_torchvision_loads_it_bit_by_bit(self, resnet, tmp_path, weights):
        run, method = resnet
        target = tmp_path / "encoder.pth"
        said = export(run, target, form="torchvision", weights=weights)
        assert "torchvision.models.resnet18().load_state_dict(torch.load('encoder.pth'), strict=False)" in said
        plain = torchvision.models.resnet18()
        missing, unexpected = plain.load_state_dict(torch.load(target, weights_only=True), strict=False)
        assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
        plain.fc = nn.Identity()
        pictures = torch.randn(2, 3, 32, 32)
        own = method.encoder if weights == "student" else method.teacher["encoder"]
        assert torch.equal(plain.eval()(pictures), own(pictures))
        assert torch.equal(plain(pictures), load_encoder(run, weights=weights)(pictures))

    def test_says_how_to_load_a_small_stem(self, tmp_path):
        run, method = make_run(tmp_path / "run", "network.encoder=resnet18", "data.image_size=8")
        said = export(run, tmp_path / "x.pth", form="torchvision")
        assert said.endswith("bias=False) and model.maxpool = torch.nn.Identity()")
        model = torchvision.models.resnet18(num_classes=1)
        exec(said.partition("after ")[2].replace(" and ", "\n"), {"model": model, "torch": torch})
        model.fc = nn.Identity()
        model.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
        pictures = torch.randn(2, 3, 8, 8)
        assert torch.equal(model.eval()(pictures), method.encoder(pictures))

    @pytest.mark.parametrize("weights", ["student", "teacher"])
    def test_safetensors(self, demo, tmp_path, weights):
        run, _ = demo
        target = tmp_path / "encoder.safetensors"
        said = export(run, target, form="safetensors", weights=weights)
        expected = load_encoder(run, weights=weights).state_dict()
        found = safetensors.torch.load_file(target)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        assert f"{len(found)} of {len(found)} tensors of tiny_resnet ({weights})" in said
        with safe_open(target, "pt") as file:
            metadata = file.metadata()
        assert len(metadata.pop("sha256")) == 64
        assert metadata == {"architecture": "tiny_resnet", "weights": weights, "method": "matrix_ssl"}

    def test_own_architectures_have_no_torchvision_form(self, demo, tmp_path):
        with pytest.raises(
            ConfigError, match=r"'tiny_resnet' is not a torchvision architecture; use --format safetensors"
        ):
            export(demo[0], tmp_path / "x.pth", form="torchvision")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_does_not_exist(self, demo, tmp_path):
        with pytest.raises(RunFolderError, match="cannot write"):
            export(demo[0], tmp_path / "nowhere" / "x.safetensors", form="safetensors")
