"""Exports: what other programs find in them, bit by bit, and what comes back by import."""

import builtins
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from matrix_ssl.cli import weights as command
from matrix_ssl.config import system
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data.views.augment import normalise
from matrix_ssl.encoder import exporting, formats, load_encoder
from matrix_ssl.encoder.exporting import FORMATS, export
from matrix_ssl.encoder.opening import open_checkpoint, open_encoder
from matrix_ssl.errors import CheckpointError, ConfigError, MissingExtra, RunFolderError
from matrix_ssl.methods.matrix_ssl import MatrixSSL
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import SUMMARY, read_config
from tests.support.encoder_runs import make_run
from tests.support.quick import some

Run = tuple[Path, MatrixSSL]
READ_AGAIN = ("safetensors", "torchvision", "timm", "huggingface")  # by `matrix-ssl import`


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Run:
    return make_run(tmp_path_factory.mktemp("demo") / "run", "network.width=8", base=find_recipe("demo"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Run:
    settings = "network.stem=standard", "data.image_size=32", "data.mean=0.4,0.5,0.6", "data.crop_fraction=0.8"
    return make_run(tmp_path_factory.mktemp("resnet") / "run", *settings)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Run:
    return make_run(tmp_path_factory.mktemp("small") / "run", "network.encoder=resnet18", "data.image_size=8")


def images(n: int = 2, side: int = 32, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(3))


def load_by_the_code(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **names: object) -> dict[str, object]:
    """Executes the lines that an export prints, in the folder of its file."""
    monkeypatch.chdir(folder)
    code = [line.removeprefix("    ") for line in text.splitlines()[1:] if line.startswith("    ") or not line]
    exec("\n".join(code), names)
    return names


class TestSafetensors:
    @pytest.mark.parametrize("weights", ["student", "teacher"])
    def test_names_values_and_metadata(self, demo, tmp_path, weights) -> None:
        run, _ = demo
        target = tmp_path / "encoder.safetensors"
        said = export(run, target, form="safetensors", weights=weights)
        expected = load_encoder(run, weights=weights).state_dict()
        found = safetensors.torch.load_file(target)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        assert said.startswith(f"{target}: {len(found)} of {len(found)} tensors of tiny_resnet ({weights}), sha256 ")
        with safe_open(target, "pt") as file:
            metadata = file.metadata()
        assert len(metadata.pop("sha256")) == 64
        assert metadata == {
            "architecture": "tiny_resnet", "weights": weights, "method": "matrix_ssl", "image_size": "8",
            "mean": "[0.305]", "std": "[0.376]", "crop_fraction": "1.0", "stem": '"auto"',
        }  # fmt: skip

    def test_a_card_that_somebody_has_written_is_not_replaced(self, demo, tmp_path) -> None:
        target, card = tmp_path / "notes", tmp_path / "notes.md"
        card.write_text("# My notes\n")
        with pytest.raises(RunFolderError, match=r"notes\.md would be replaced by the model card, but it is not one"):
            export(demo[0], target, form="safetensors")
        assert card.read_text() == "# My notes\n" and not target.exists()
        card.unlink()
        for weights in ("student", "teacher"):  # an untouched one is
            export(demo[0], target, form="safetensors", weights=weights)
        text = card.read_text()
        assert "teacher" in text
        card.write_text(text.replace("license: unknown", "license: mit"))
        before = target.read_bytes()
        with pytest.raises(RunFolderError, match=r"licence has been filled in: move it, or choose a different"):
            export(demo[0], target, form="safetensors")
        assert "license: mit" in card.read_text() and target.read_bytes() == before

    def test_a_folder_that_does_not_exist(self, demo, tmp_path) -> None:
        with pytest.raises(RunFolderError, match="Cannot write"):
            export(demo[0], tmp_path / "nowhere" / "x.safetensors", form="safetensors")
        assert list(tmp_path.iterdir()) == []


class TestTorchvision:
    @pytest.mark.parametrize("weights", some(["student", "teacher"], "student"))
    def test_a_model_loads_it_bit_by_bit(self, resnet, tmp_path, weights, monkeypatch) -> None:
        run, method = resnet
        target = tmp_path / "encoder.pth"
        said = export(run, target, form="torchvision", weights=weights)
        plain = torchvision.models.resnet18()
        missing, unexpected = plain.load_state_dict(torch.load(target, weights_only=True), strict=False)
        assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
        plain.fc = nn.Identity()
        own = method.encoder if weights == "student" else method.teacher["encoder"]
        assert torch.equal(plain.eval()(images()), own(images()))
        printed = load_by_the_code(said, tmp_path, monkeypatch)["model"]
        printed.fc = nn.Identity()
        assert torch.equal(printed.eval()(images()), own(images()))

    def test_the_code_for_a_small_stem(self, small, tmp_path, monkeypatch) -> None:
        run, method = small
        model = load_by_the_code(export(run, tmp_path / "x.pth", form="torchvision"), tmp_path, monkeypatch)["model"]
        model.fc = nn.Identity()
        assert torch.equal(model.eval()(images(side=8)), method.encoder(images(side=8)))


class TestTimm:
    def test_a_model_loads_it_bit_by_bit(self, resnet, tmp_path, monkeypatch) -> None:
        pytest.importorskip("timm")
        run, method = resnet
        said = export(run, tmp_path / "x.safetensors", form="timm")
        model = load_by_the_code(said, tmp_path, monkeypatch)["model"]
        assert torch.equal(model.eval()(images()), method.encoder(images()))

    @pytest.mark.parametrize(("name", "side", "argument"), [
        ("timm/resnet10t", 32, "num_classes=0)"),
        ("timm/test_vit", 160, "num_classes=0, img_size=160)"),
    ])  # fmt: skip
    def test_architectures_of_timm(self, tmp_path, monkeypatch, name, side, argument) -> None:
        pytest.importorskip("timm")
        run, method = make_run(tmp_path / "run", f"network.encoder={name}", f"data.image_size={side}")
        said = export(run, form="timm")
        assert argument in said
        model = load_by_the_code(said, run, monkeypatch)["model"]
        assert torch.equal(model.eval()(images(side=side)), method.encoder(images(side=side)))

    def test_the_ending(self, resnet, tmp_path) -> None:
        with pytest.raises(ConfigError, match=r"x\.pth: a file for timm must end in \.safetensors"):
            export(resnet[0], tmp_path / "x.pth", form="timm")


class TestHuggingFace:
    def test_features_are_those_of_torchvision(self, resnet, tmp_path) -> None:
        transformers = pytest.importorskip("transformers")
        run, method = resnet
        said = export(run, tmp_path / "hub", form="huggingface")
        assert "120 of 120 tensors of resnet18 (student)" in said
        names = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
        assert {path.name for path in (tmp_path / "hub").iterdir()} == names
        model, loading = transformers.AutoModel.from_pretrained(tmp_path / "hub", output_loading_info=True)
        assert type(model).__name__ == "ResNetModel" and not any(loading.values())
        for side in (32, 65):
            found = model.eval()(images(side=side)).pooler_output.flatten(1)
            torch.testing.assert_close(found, method.encoder(images(side=side)), rtol=1e-5, atol=1e-5)

    def test_images_are_prepared_as_here(self, resnet, tmp_path) -> None:
        transformers = pytest.importorskip("transformers")
        export(resnet[0], tmp_path / "hub", form="huggingface")
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hub")
        colour = np.array([102, 51, 204], np.uint8)
        image = Image.fromarray(np.broadcast_to(colour, (60, 90, 3)).copy())
        found = processor(image, return_tensors="pt")["pixel_values"]
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.229, 0.224, 0.225)))
        expected = (torch.tensor([0.4, 0.2, 0.8]).view(1, 3, 1, 1) - mean) / std
        assert found.shape == (1, 3, 32, 32)
        torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=1e-5)
        squares = np.zeros((100, 100, 3), np.uint8)
        squares[10:90, 10:90] = 255  # the central 0.8 of the side
        cropped = processor(Image.fromarray(squares), return_tensors="pt")["pixel_values"]
        assert (cropped[..., 1:-1, 1:-1] > 1.5).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["resnet34", "resnet50", "resnet101", "resnet152"])
    def test_every_depth(self, tmp_path, name) -> None:
        pytest.importorskip("transformers")
        run, _ = make_run(tmp_path / "run", f"network.encoder={name}", "network.stem=standard", "data.image_size=32")
        total = len(load_encoder(run).state_dict())
        assert f"{total} of {total} tensors of {name}" in export(run, form="huggingface")

    @pytest.mark.slow
    def test_a_stride_in_another_layer_is_noticed(self, tmp_path, monkeypatch) -> None:
        """The names and shapes of the two variants of a block with three convolutions are equal."""
        transformers = pytest.importorskip("transformers")
        run, _ = make_run(
            tmp_path / "run", "network.encoder=resnet50", "network.stem=standard", "data.image_size=32"
        )  # fmt: skip
        plain = transformers.AutoModel.from_pretrained

        def altered(folder: str, **options: object) -> nn.Module:
            return plain(folder, downsample_in_bottleneck=True, **options)

        monkeypatch.setattr(transformers.AutoModel, "from_pretrained", altered)
        with pytest.raises(CheckpointError, match="transformers computes features that differ"):
            export(run, form="huggingface")
        assert not (run / "export-huggingface").exists()  # unaltered it is exported: test_every_depth

    def test_a_folder_with_other_files(self, resnet, tmp_path) -> None:
        pytest.importorskip("transformers")
        (tmp_path / "config.json").write_text("{}")
        export(resnet[0], tmp_path, form="huggingface")  # an earlier export is replaced
        for name in ("model.safetensors", "README.md"):  # what a kill in the middle of an export leaves
            (tmp_path / f".{name}.ab12cd34.tmp").touch()
        export(resnet[0], tmp_path, form="huggingface")
        assert not list(tmp_path.glob(".*"))
        with system.locked(tmp_path / ".lock"):
            pid = os.fork()  # a lock is one between processes
            if pid == 0:
                said = ""
                try:
                    exporting._write_folder(tmp_path, {path.name: b"" for path in tmp_path.iterdir()})
                except RunFolderError as error:
                    said = str(error)
                finally:
                    os._exit("is being written by another process" not in said)
            assert os.waitpid(pid, 0)[1] == 0
        (tmp_path / "notes.txt").touch()
        with pytest.raises(RunFolderError, match=r"holds other files, such as notes.txt; choose a different --out"):
            export(resnet[0], tmp_path, form="huggingface")


def detectron2_resnet50() -> dict[str, tuple[int, ...]]:
    """Names and shapes by the definition: detectron2/modeling/backbone/resnet.py, BasicStem and BottleneckBlock."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, out: int, channels: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, channels, kernel, kernel)
        shapes.update({f"{name}.norm.{leaf}": (out,) for leaf in ("weight", "bias", "running_mean", "running_var")})

    layer("stem.conv1", 64, 3, 7)
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        narrow, wide = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            name = f"res{stage + 2}.{block}"
            if channels != wide:
                layer(f"{name}.shortcut", wide, channels, 1)
            layer(f"{name}.conv1", narrow, channels, 1)
            layer(f"{name}.conv2", narrow, narrow, 3)
            layer(f"{name}.conv3", wide, narrow, 1)
            channels = wide
    return shapes


class TestDetectron2:
    @pytest.mark.parametrize(
        ("settings", "levels"),
        [(["data.white_level=4095"], "0 as 0 and 4095 as 1"),
         (["data.channels=3", "data.value_range=-1,2.5"], "-1 as 0 and 2.5 as 1"),
         (["data.channels=3", "data.value_range=0,255"], None)],
    )  # fmt: skip
    def test_levels_that_are_not_of_8_bits_are_said(self, tmp_path, settings, levels) -> None:
        run, _ = make_run(tmp_path / "run", "network.stem=standard", "data.image_size=32", *settings)
        said = export(run, form="detectron2")
        assert ("that of images of 8 bits" in said) is (levels is not None) and (levels or "") in said

    def test_names_and_shapes_of_a_resnet50(self) -> None:
        with torch.device("meta"):
            model = torchvision.models.resnet50(num_classes=1)
        tensors = {name: t for name, t in model.state_dict().items() if not name.startswith("fc.")}
        ours = {
            formats.names.detectron2(name): tuple(t.shape)
            for name, t in tensors.items()
            if not name.endswith("num_batches_tracked")
        }
        assert ours == detectron2_resnet50()

    def test_the_file(self, resnet, tmp_path) -> None:
        run, method = resnet
        said = export(run, tmp_path / "x.pth", form="detectron2")
        assert "100 of 120 tensors of resnet18 (student), all but 20 counters num_batches_tracked" in said
        for line in ("STRIDE_IN_1X1 = False", 'INPUT.FORMAT = "RGB"', "PIXEL_MEAN = [102.0, 127.5, 153.0]"):
            assert line in said
        found, expected = torch.load(tmp_path / "x.pth", weights_only=True), method.encoder.state_dict()
        assert torch.equal(found["stem.conv1.norm.running_var"], expected["bn1.running_var"])
        assert torch.equal(found["res4.0.shortcut.weight"], expected["layer3.0.downsample.0.weight"])
        assert torch.equal(found["res5.1.conv2.norm.bias"], expected["layer4.1.bn2.bias"])
        assert len(found) == 100

    def test_it_is_not_read_again(self, resnet, tmp_path) -> None:
        """detectron2's own weights have another stride and order of colours, which names do not tell."""
        export(resnet[0], tmp_path / "x.pth", form="detectron2")
        with pytest.raises(CheckpointError, match="has the names of detectron2"):
            open_checkpoint(tmp_path / "x.pth")


class TestOnnx:
    def test_from_pixels_to_features_in_batches_of_any_size(self, demo, tmp_path, monkeypatch) -> None:
        onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        run, method = demo
        said = export(run, tmp_path / "x.onnx", form="onnx", weights="teacher")
        assert "ONNX graph of tiny_resnet (teacher), features in onnxruntime as in PyTorch within" in said
        onnx.checker.check_model(str(tmp_path / "x.onnx"))
        session = runtime.InferenceSession(str(tmp_path / "x.onnx"))
        assert session.get_modelmeta().custom_metadata_map["architecture"] == "tiny_resnet"
        assert [node.name for node in session.get_inputs() + session.get_outputs()] == ["pixels", "features"]
        data = read_config(run).data
        for n in (1, 2, 7):
            pixels = images(n, 8, 1)
            (found,) = session.run(None, {"pixels": pixels.numpy()})
            expected = method.teacher["encoder"](normalise(pixels, data.mean, data.std))
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)
        names = load_by_the_code(said, tmp_path, monkeypatch, pixels=images(3, 8, 1).numpy())
        assert names["features"].shape == (3, expected.shape[1])

    def test_without_onnxruntime_it_says_what_was_not_compared(self, demo, tmp_path, monkeypatch) -> None:
        pytest.importorskip("onnxscript")
        hide(monkeypatch, "onnxruntime")
        said = export(demo[0], tmp_path / "x.onnx", form="onnx")
        assert "not compared with PyTorch: onnxruntime is not installed" in said

    def test_other_features_are_noticed(self) -> None:
        features = 3 * torch.ones(2, 4)
        assert formats.check_features(features + 1e-6, features, "it") == pytest.approx(1e-6 / 3, rel=0.2)
        for wrong in (features + 1e-4, features * torch.nan):
            with pytest.raises(CheckpointError, match="it computes features that differ"):
                formats.check_features(wrong, features, "it")


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Makes packages look as if they were not installed."""
    find, load = importlib.util.find_spec, builtins.__import__

    def find_spec(name: str, *rest: object) -> object:
        return None if name in packages else find(name, *rest)

    def import_(name: str, *rest: object, **options: object) -> object:
        if name.partition(".")[0] in packages:
            raise ImportError(name)
        return load(name, *rest, **options)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(builtins, "__import__", import_)
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


class TestWhatFormatsHold:
    def test_the_command_knows_all(self) -> None:
        assert tuple(FORMATS) == command._FORMATS

    @pytest.mark.parametrize(("which", "form", "message"), [
        ("demo", "torchvision", "'tiny_resnet' is not a torchvision architecture; use --format safetensors or onnx."),
        ("demo", "timm", "'tiny_resnet' is not a ResNet that timm has under the same name; use"),
        ("demo", "huggingface", "use --format safetensors or onnx."),
        ("demo", "detectron2", "use --format safetensors or onnx."),
        ("small", "timm", "timm has no resnet18 with the stem for small images (one trained with --set "
         "network.stem=standard has the usual stem); use --format safetensors or torchvision or onnx."),
        ("small", "huggingface", "use --format safetensors or torchvision or onnx."),
        ("small", "detectron2", "use --format safetensors or torchvision or onnx."),
    ])  # fmt: skip
    def test_others_are_named_where_one_cannot(self, request, tmp_path, which, form, message) -> None:
        with pytest.raises(ConfigError) as caught:
            export(request.getfixturevalue(which)[0], tmp_path / "x", form=form)
        assert str(caught.value).startswith(f"--format {form}: ") and message in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("form", "package", "extra"), [
        ("timm", "timm", "timm"), ("huggingface", "transformers", "huggingface"),
        ("onnx", "onnx", "onnx"), ("onnx", "onnxscript", "onnx"),
    ])  # fmt: skip
    def test_a_library_that_is_absent(self, resnet, tmp_path, monkeypatch, form, package, extra) -> None:
        hide(monkeypatch, package)
        target = tmp_path / ("x" + {"timm": ".safetensors", "onnx": ".onnx"}.get(form, ""))
        with pytest.raises(MissingExtra, match=rf"'{package}' is not installed: .*pip install -e '\.\[{extra}\]'"):
            export(resnet[0], target, form=form)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_does_not_load_back(self, resnet, tmp_path, monkeypatch) -> None:
        save = torch.save

        def alter(tensors: dict[str, Tensor], path: Path) -> None:
            first = tensors["conv1.weight"].clone()
            first.view(-1)[0] = torch.nextafter(first.view(-1)[0], torch.tensor(9.0))  # the smallest step
            save(tensors | {"conv1.weight": first}, path)

        monkeypatch.setattr(torch, "save", alter)
        with pytest.raises(CheckpointError, match="do not load back as they were written; no file was written"):
            export(resnet[0], tmp_path / "x.pth", form="torchvision")
        assert list(tmp_path.iterdir()) == []


class TestCards:
    def test_front_matter_and_facts(self, resnet, tmp_path) -> None:
        run, _ = resnet
        write_json(run / SUMMARY, {"epochs": 2, "data": {"name": "photos", "images": 1234}})
        (run / "evaluation" / "birds").mkdir(parents=True)
        score = {"accuracy": 0.8125, "interval": [0.75, 0.875], "mean_per_class": 0.8}
        results = {
            "weights": "student", "training_images": 80,
            "set": {"train": {"images": 80, "classes": 4}, "test": {"images": 20, "classes": 4}},
            "measures": {"linear": score},
            "baselines": {"raw_pixels": {"linear": score | {"accuracy": 0.25}}, "random_network": {}},
        }  # fmt: skip
        write_json(run / "evaluation" / "birds" / "linear.json", results)
        for weights, has_accuracy in (("student", True), ("teacher", False)):
            said = export(run, tmp_path / "x.pth", form="torchvision", weights=weights)
            card = (tmp_path / "x.pth.md").read_text()
            front = card.split("---\n")[1]
            assert "library_name: torchvision\n" in front and "license: unknown" in front
            assert "| Trained on | 1234 images of photos, without labels |" in card
            assert f"| Trained by | matrix_ssl, {weights} |" in card
            assert "minus 0.4, 0.5, 0.6, divided by 0.229, 0.224, 0.225" in card
            digest = said.partition("sha256 ")[2][:12]
            assert f"SHA-256 {digest}" in card
            assert ("on birds, 20 test images of 4 classes" in card) == has_accuracy
            assert ("| linear | 81.2 | 75.0 to 87.5 | 80.0 | 25.0 | – | 80 |" in card) == has_accuracy
        (run / SUMMARY).unlink()
        shutil.rmtree(run / "evaluation")

    def test_the_hub_reads_the_front_matter(self, demo, tmp_path) -> None:
        hub = pytest.importorskip("huggingface_hub")
        export(demo[0], tmp_path / "x.safetensors", form="safetensors")
        data = hub.ModelCard((tmp_path / "x.safetensors.md").read_text()).data.to_dict()
        assert data["license"] == "unknown" and data["pipeline_tag"] == "image-feature-extraction"
        assert data["tags"] == ["matrix-ssl", "self-supervised-learning"]


class TestRoundTrips:
    @pytest.mark.parametrize("form", some(READ_AGAIN, "torchvision", "huggingface"))
    def test_an_export_is_imported_bit_by_bit(self, resnet, tmp_path, form) -> None:
        if form in ("timm", "huggingface"):
            pytest.importorskip({"huggingface": "transformers"}.get(form, form))
        run, method = resnet
        target = tmp_path / {"torchvision": "x.pth", "huggingface": "x"}.get(form, "x.safetensors")
        export(run, target, form=form, weights="teacher")
        opened = open_checkpoint(target / "model.safetensors" if form == "huggingface" else target)
        assert "120 of 120 tensors of resnet18 matched" in opened.text
        expected, found = method.teacher["encoder"].state_dict(), opened.encoder.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
        original, data = read_config(run).data, opened.config.data
        if form != "torchvision":  # a state dict has no place for the rest
            assert (data.image_size, data.mean, data.std) == (original.image_size, original.mean, original.std)
            assert data.crop_fraction == original.crop_fraction

    def test_squeezed_images_stay_so(self, tmp_path) -> None:
        pytest.importorskip("transformers")
        run, _ = make_run(tmp_path / "r", "network.stem=standard", "data.image_size=32", "data.crop_mode=squash")
        export(run, tmp_path / "x.safetensors", form="safetensors")
        assert open_checkpoint(tmp_path / "x.safetensors").config.data.crop_mode == "squash"
        export(run, tmp_path / "x", form="huggingface")
        assert open_encoder(f"hf:{tmp_path / 'x'}").config.data.crop_mode == "squash"

    @pytest.mark.parametrize("which", ["demo", "small"])
    def test_architectures_that_are_only_here(self, request, tmp_path, which) -> None:
        run, method = request.getfixturevalue(which)
        export(run, tmp_path / "x.safetensors", form="safetensors")
        opened, original = open_checkpoint(tmp_path / "x.safetensors"), read_config(run)
        side, channels = original.data.image_size, len(original.data.mean)
        assert torch.equal(opened.encoder(images(2, side, channels)), method.encoder(images(2, side, channels)))
        assert opened.config.data.mean == original.data.mean

    def test_the_metadata_is_json(self, demo, tmp_path) -> None:
        export(demo[0], tmp_path / "x.safetensors", form="safetensors")
        with safe_open(tmp_path / "x.safetensors", "pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["mean"]) == list(read_config(demo[0]).data.mean)
