"""WHERE an encoder is: the notation, and published weights from local caches, without a network."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
import transformers
from PIL import Image
from torch import Tensor, nn

from matrix_ssl.data.files.squares import centre_box
from matrix_ssl.data.views.augment import crop, normalise
from matrix_ssl.encoder import image_models
from matrix_ssl.encoder.importing import import_run
from matrix_ssl.encoder.loading import load_encoder
from matrix_ssl.encoder.opening import Opened, open_checkpoint, open_encoder
from matrix_ssl.encoder.where import Where, read_where
from matrix_ssl.errors import CheckpointError, ConfigError, MatrixSSLError
from matrix_ssl.runs.folder import read_config
from tests.support import published_layouts as published
from tests.support.hub_caches import Caches

SIDE = 32
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "image_size": SIDE, "patch_size": 8}  # fmt: skip


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caches:
    return Caches(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def tiny_vit() -> bytes:
    torch.manual_seed(0)
    return safetensors.torch.save(timm.create_model("test_vit").state_dict())


def refused(where: str, kind: type[MatrixSSLError] = CheckpointError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        open_encoder(where, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def same(encoder: nn.Module, tensors: dict[str, Tensor]) -> bool:
    own = encoder.state_dict()
    return all(torch.equal(own[name], tensors[name]) for name in own)


class TestNotation:
    @pytest.mark.parametrize(("where", "expected", "folder"), [
        ("runs/photos", Where("path", "runs/photos"), "photos"),
        ("a/moco.pth.tar", Where("path", "a/moco.pth.tar"), "moco"),
        ("./timm/resnet18", Where("path", "./timm/resnet18"), "resnet18"),
        (Path("timm/resnet18"), Where("path", "timm/resnet18"), "resnet18"),
        ("torchvisions/x", Where("path", "torchvisions/x"), "x"),
        ("torchvision/resnet50", Where("torchvision", "resnet50"), "torchvision-resnet50"),
        ("torchvision/resnet50:IMAGENET1K_V1", Where("torchvision", "resnet50", "IMAGENET1K_V1"),
         "torchvision-resnet50-IMAGENET1K_V1"),
        ("timm/resnet18.a1_in1k", Where("timm", "resnet18", "a1_in1k"), "timm-resnet18-a1_in1k"),
        ("hf:facebook/dinov2-small", Where("hf", "facebook/dinov2-small"), "hf-facebook-dinov2-small"),
        ("hf:../models/mine", Where("hf", "../models/mine"), "hf-models-mine"),
        ("random/timm/resnet18", Where("random", "timm/resnet18"), "random-timm-resnet18"),
    ])  # fmt: skip
    def test_forms(self, where: str | Path, expected: Where, folder: str) -> None:
        assert read_where(where) == expected and expected.folder == folder
        assert expected.label == (Path(where).name if expected.kind == "path" else where)

    def test_a_name_is_needed(self) -> None:
        for where in ("random", "torchvision/", "timm", "hf:"):
            with pytest.raises(ConfigError, match=f"'{where}' needs an architecture: write it as "):
                read_where(where)
        assert read_where("random", architecture="resnet18") == Where("random", "resnet18")

    def test_a_path_that_does_not_exist(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert refused("runs/phtos") == (
            "runs/phtos does not exist; name a run folder, a checkpoint file, torchvision/NAME[:WEIGHTS], "
            "timm/NAME[.TAG], hf:NAME or random/NAME."
        )
        (tmp_path / "runs" / "photos").mkdir(parents=True)
        assert refused("runs/phtos").startswith(
            "runs/phtos does not exist. Did you mean 'runs/photos'? Otherwise name a run folder, "
        )

    def test_the_architecture_may_only_confirm(self) -> None:
        opened = open_encoder("random/resnet18", architecture="resnet18", image_size=SIDE)
        assert opened.text == "resnet18 at its initialisation, seed 0."
        message = refused("random/resnet18", ConfigError, architecture="resnet34", image_size=SIDE)
        assert message == "random/resnet18 is 'resnet18', not 'resnet34'; remove --architecture."


class TestTorchvision:
    def name(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        views = torchvision.models.ResNet18_Weights.DEFAULT.transforms
        stand_in = SimpleNamespace(url=url, transforms=views)
        known = SimpleNamespace(DEFAULT=stand_in, __members__={})
        monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: known)

    def test_a_download(self, caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Over the protocol file:, by torchvision's own function."""
        model = published.resnet()
        torch.save(model.state_dict(), tmp_path / "x.pth")
        digest = hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()
        source = (tmp_path / "x.pth").rename(tmp_path / f"resnet18-{digest[:8]}.pth")
        self.name(monkeypatch, source.as_uri())
        assert "add --download to fetch it from file:" in refused("torchvision/resnet18") and caches.files() == []
        opened = open_encoder("torchvision/resnet18", download=True)
        assert same(opened.encoder, model.state_dict()) and opened.sha256 == digest
        source.unlink()
        assert same(open_encoder("torchvision/resnet18").encoder, model.state_dict())  # now it is in the cache
        assert caches.attempts == []

    def test_a_download_of_something_else_leaves_nothing(
        self, caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "resnet18-01234567.pth").write_bytes(b"a page that says: not today")
        self.name(monkeypatch, (tmp_path / "resnet18-01234567.pth").as_uri())
        message = refused("torchvision/resnet18", download=True)
        assert "cannot be downloaded from file:" in message and "invalid hash value" in message
        assert caches.files() == []

    def test_no_network(self, caches: Caches) -> None:
        message = refused("torchvision/resnet18", download=True)
        assert message == (
            "The file of ResNet18_Weights.IMAGENET1K_V1 cannot be downloaded from "
            "https://download.pytorch.org/models/resnet18-f37072fd.pth: [Errno 101] Network is unreachable."
        )
        assert caches.attempts and caches.files() == []

    def test_names(self) -> None:
        assert "has no weights 'V3'. Known: DEFAULT, IMAGENET1K_V1." in refused("torchvision/resnet18:V3", ConfigError)
        with pytest.raises(ConfigError, match=r"has no weights of 'resnet51'\. Did you mean 'resnet"):
            open_encoder("torchvision/resnet51")
        for name in ("deeplabv3_resnet50", "raft_small", "quantized_resnet18", "r3d_18"):  # no encoders of images
            with pytest.raises(ConfigError, match=f"^torchvision has no weights of '{name}'"):
                open_encoder(f"torchvision/{name}")


class TestTimm:
    def test_from_the_cache_of_the_hub(self, caches: Caches, tiny_vit: bytes) -> None:
        caches.put("timm/test_vit.r160_in1k", {"model.safetensors": tiny_vit})
        opened = open_encoder("timm/test_vit")
        assert same(opened.encoder, safetensors.torch.load(tiny_vit))
        assert opened.text == (
            "timm/test_vit.r160_in1k: 78 of 78 tensors of timm/test_vit matched, 2 ignored: 2 of the head (head)."
        )
        data, settings = opened.config.data, timm.data.resolve_model_data_config(timm.create_model("test_vit"))
        assert (data.image_size, data.mean, data.std, data.crop_fraction) == (
            settings["input_size"][1], settings["mean"], settings["std"], settings["crop_pct"]
        )  # fmt: skip
        assert opened.sha256 == hashlib.sha256(tiny_vit).hexdigest() and caches.attempts == []

    def test_images_are_prepared_in_its_way(
        self, caches: Caches, tiny_vit: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caches.put("timm/test_vit.r160_in1k", {"model.safetensors": tiny_vit})
        settings = timm.get_pretrained_cfg("test_vit")
        for theirs, ours in (("center", "centre"), ("squash", "squash")):
            monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _, mode=theirs: replace(settings, crop_mode=mode))
            assert open_encoder("timm/test_vit").config.data.crop_mode == ours
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: replace(settings, crop_mode="border"))
        message = refused("timm/test_vit", ConfigError)
        assert "timm/test_vit.r160_in1k takes images with crop_mode=border of timm, which is not supported" in message

    def test_from_the_cache_of_pytorch(self, caches: Caches, tiny_vit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        name = f"test_vit-{hashlib.sha256(tiny_vit).hexdigest()[:8]}.safetensors"
        settings = replace(timm.get_pretrained_cfg("test_vit"), url=f"https://x.org/{name}")
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: settings)
        caches.torch.mkdir(parents=True)
        (caches.torch / name).write_bytes(tiny_vit)
        assert same(open_encoder("timm/test_vit").encoder, safetensors.torch.load(tiny_vit))
        (caches.torch / name).write_bytes(tiny_vit[:-1])
        assert f"{caches.torch / name} is damaged, perhaps by an interrupted download" in refused("timm/test_vit")

    def test_a_cut_file(self, caches: Caches, tiny_vit: bytes) -> None:
        caches.put("timm/test_vit.r160_in1k", {"model.safetensors": tiny_vit})
        caches.interrupt("timm/test_vit.r160_in1k", "model.safetensors")
        for download in (False, True):
            message = refused("timm/test_vit", download=download)
            assert "model.safetensors is damaged, perhaps by an interrupted download: its SHA-256" in message
            assert message.endswith("; remove it and download it again.") and caches.attempts == []

    def test_absent(self, caches: Caches) -> None:
        message = refused("timm/test_vit.r160_in1k")
        assert message == (
            f"The file of timm/test_vit.r160_in1k is not on this machine, in "
            f"{caches.hub}/models--timm--test_vit.r160_in1k; add --download to fetch it from "
            "https://huggingface.co/timm/test_vit.r160_in1k."
        )
        assert caches.attempts == []
        message = refused("timm/test_vit", download=True)
        assert message.startswith(
            "The file of timm/test_vit.r160_in1k cannot be downloaded from https://huggingface.co"
        )
        assert "Network is unreachable" in message and caches.attempts
        assert not [path for path in caches.files() if path.is_file() and path.suffix != ".lock"]

    def test_a_download(self, caches: Caches, tiny_vit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        def fetch(repository: str, name: str) -> str:
            if name == "model.safetensors":
                response = SimpleNamespace(headers={}, request=None, status_code=404)
                raise huggingface_hub.errors.RemoteEntryNotFoundError("404", response=response)
            return str(caches.put(repository, {name: tiny_vit}) / name)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
        opened = open_encoder("timm/test_vit", download=True)  # the second name, as older repositories have
        assert same(opened.encoder, safetensors.torch.load(tiny_vit))

    def test_names(self) -> None:
        assert refused("timm/resnet18.x", ConfigError).startswith("timm/resnet18 has no weights 'x'. Known: ")
        assert refused("timm/zzz", ConfigError) == "timm has no architecture 'zzz'. Choose a different architecture."

    def test_weights_that_do_not_match(self, caches: Caches, tiny_vit: bytes) -> None:
        tensors = safetensors.torch.load(tiny_vit)
        few = {name: tensor for name, tensor in tensors.items() if name.startswith("head")}
        for kept, text in (({k: v for k, v in tensors.items() if k != "norm.bias"}, "77 of 78 tensors"),
                           (few, "has no known encoder: none of its 2 tensors"),
                           (tensors | {"extra.weight": torch.zeros(2)}, "extra.weight")):  # fmt: skip
            snapshot = caches.put("timm/test_vit.r160_in1k", {})
            (snapshot / "model.safetensors").unlink(missing_ok=True)
            caches.put("timm/test_vit.r160_in1k", {"model.safetensors": safetensors.torch.save(kept)})
            assert text in refused("timm/test_vit")


def save_model(folder: Path, model: Any, processor: Any) -> dict[str, bytes]:
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def vit() -> Any:
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE))


def square(side: int = SIDE) -> dict[str, int]:
    return {"height": side, "width": side}


MODELS: dict[str, tuple[Any, Any, str]] = {
    "vit": (vit, lambda: transformers.ViTImageProcessor(size=square()), "22 of 22 tensors of hf:lab/vit matched, "
            "2 ignored: 2 of the classifier (classifier)."),
    "dinov2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE)),
               lambda: transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size=square()),
               "25 of 25 tensors of hf:lab/dinov2 matched, 0 ignored."),
    "swin": (lambda: transformers.SwinModel(transformers.SwinConfig(
                 image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)),
             lambda: transformers.ViTImageProcessor(size=square(), image_mean=[0.1, 0.2, 0.3]),
             "43 of 43 tensors of hf:lab/swin matched, 0 ignored."),
    "convnext": (lambda: transformers.ConvNextForImageClassification(transformers.ConvNextConfig(
                     hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])),
                 lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIDE}),
                 "54 of 54 tensors of hf:lab/convnext matched, 2 ignored: 2 of the classifier (classifier)."),
}  # fmt: skip


class TestTransformers:
    @pytest.mark.parametrize("name", MODELS)
    def test_features_are_those_of_transformers(self, caches: Caches, tmp_path: Path, name: str) -> None:
        make, processor, text = MODELS[name]
        model = make().eval()
        caches.put(f"lab/{name}", save_model(tmp_path / "saved", model, processor()))
        opened = open_encoder(f"hf:lab/{name}")
        assert opened.text == text and not opened.encoder.training and caches.attempts == []
        image = torch.randint(0, 256, (3, 50, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        theirs = processor()(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = getattr(model, model.base_model_prefix, model)(theirs)
            pooled = output.last_hidden_state[:, 0] if name == "vit" else output.pooler_output.flatten(1)
            assert torch.allclose(opened.encoder(theirs), pooled, atol=1e-6)
        self.check_preprocessing(opened, image, theirs[0])

    @pytest.mark.parametrize("processor", [
        lambda: transformers.EfficientNetImageProcessor(size=square(), image_std=[0.4, 0.5, 0.6]),  # divides twice
        lambda: transformers.LevitImageProcessor(size={"shortest_edge": SIDE}, crop_size=square()),  # resizes to 36
        lambda: transformers.PoolFormerImageProcessor(size={"shortest_edge": SIDE}, crop_size=square(), crop_pct=0.8),
        lambda: transformers.BitImageProcessor(size={"shortest_edge": 37}, crop_size=square()),
    ])  # fmt: skip
    def test_preprocessing_is_that_of_the_processor(self, caches: Caches, tmp_path: Path, processor: Any) -> None:
        """Also where it is more than its settings say."""
        caches.put("lab/vit", save_model(tmp_path / "saved", vit(), processor()))
        image = torch.randint(0, 256, (3, 50, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        smooth = torch.nn.functional.interpolate(image[None, :, ::10, ::10].float(), 50, mode="bicubic").clamp(0, 255)
        image = smooth[0].round().byte()  # so that ways to interpolate hardly differ
        theirs = processor()(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"][0]
        data = open_encoder("hf:lab/vit").config.data
        ours = normalise(
            crop(image, centre_box(data.crop_fraction, 50, 50), SIDE)[None].float() / 255, data.mean, data.std
        )
        assert (ours[0] - theirs).abs().max() < 0.1 / min(data.std)

    @pytest.mark.parametrize("processor", [
        lambda: transformers.MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size=square()),  # BGR
        lambda: transformers.BitImageProcessor(size={"shortest_edge": 24}, crop_size=square()),  # a margin of zeros
    ])  # fmt: skip
    def test_preprocessing_that_no_setting_expresses(self, caches: Caches, tmp_path: Path, processor: Any) -> None:
        caches.put("lab/vit", save_model(tmp_path / "saved", vit(), processor()))
        message = refused("hf:lab/vit")
        assert f"{type(processor()).__name__} prepares images in a way that no setting here expresses" in message

    @pytest.mark.parametrize(("processor", "mode"), [
        (lambda: transformers.ViTImageProcessor(size=square()), "squash"),
        (lambda: transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size=square()), "centre"),
        (lambda: transformers.BitImageProcessor(size=square(36), crop_size=square()), "squash"),
        (lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIDE}), "centre"),
        (lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}), "squash"),  # from this size on
        (lambda: transformers.LevitImageProcessor(size={"shortest_edge": SIDE}, crop_size=square()), "centre"),
        (lambda: transformers.EfficientNetImageProcessor(size=square()), "squash"),
    ])  # fmt: skip
    @pytest.mark.parametrize("shape", [(50, 80), (90, 40)])
    def test_an_image_that_is_not_square_is_prepared_as_by_the_processor(
        self, processor: Any, mode: str, shape: tuple[int, int]
    ) -> None:
        data = image_models._data(processor(), "hf:x")
        assert data.crop_mode == mode
        ramp = torch.linspace(0, 130, shape[0])[:, None] + torch.linspace(0, 120, shape[1])
        image = torch.stack([ramp, ramp.flip(0), ramp.flip(1)]).round().byte()
        theirs = processor()(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"][0]
        box = centre_box(data.crop_fraction, *shape, mode=data.crop_mode)
        ours = normalise(crop(image, box, data.image_size)[None].float() / 255, data.mean, data.std)[0]
        assert (ours - theirs).abs().max() < 0.03 / min(data.std)

    def test_a_model_of_timm_is_to_be_named_as_such(self, caches: Caches, tmp_path: Path) -> None:
        assert (
            refused("hf:timm/resnet50.a1_in1k")
            == "hf:timm/resnet50.a1_in1k is a model of timm: use timm/resnet50.a1_in1k."
        )
        settings = timm.get_pretrained_cfg("test_vit").to_dict()
        config = transformers.TimmWrapperConfig.from_dict(
            {"architecture": "test_vit", "pretrained_cfg": settings, "num_classes": 10, "num_features": 64}
        )
        model = transformers.TimmWrapperModel(config)
        files = save_model(tmp_path / "saved", model, None)
        caches.put("lab/tuned", files)
        for where in (f"hf:{tmp_path / 'saved'}", "hf:lab/tuned"):
            assert refused(where) == (
                f"{where} is a model of timm: use timm/test_vit, or import its model.safetensors with --architecture "
                "timm/test_vit."
            )
        opened = open_checkpoint(tmp_path / "saved" / "model.safetensors", architecture="timm/test_vit")
        assert same(opened.encoder, model.timm_model.state_dict()) and caches.attempts == []

    def test_a_processor_that_adds_a_border_is_refused(self) -> None:
        class Padded(transformers.BitImageProcessor):  # type: ignore[misc]
            def __call__(self, image: Any, **options: Any) -> Any:
                height, width = image.shape[1:]
                border = np.zeros((3, max(height, width), max(height, width)), np.uint8)
                border[:, :height, :width] = image
                return super().__call__(border, **options)

        with pytest.raises(CheckpointError, match="such as another order of colours or a border"):
            image_models._data(Padded(size={"shortest_edge": SIDE}, crop_size=square()), "hf:x")

    def check_preprocessing(self, opened: Opened, image: Tensor, theirs: Tensor) -> None:
        """Theirs interpolates differently, and rounds the side of a crop, so that single pixels may differ."""
        data = opened.config.data
        assert data.image_size == SIDE
        ours = crop(image, centre_box(data.crop_fraction, 50, 50), SIDE)[None].float() / 255
        ours = normalise(ours, data.mean, data.std)[0]
        assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.9
        assert (ours.mean((1, 2)) - theirs.mean((1, 2))).abs().max() < 0.05
        assert (ours.std((1, 2)) / theirs.std((1, 2)) - 1).abs().max() < 0.25

    def test_a_run_of_it_needs_no_cache(self, caches: Caches, tmp_path: Path) -> None:
        make, processor, _ = MODELS["dinov2"]
        caches.put("lab/dinov2", save_model(tmp_path / "saved", make(), processor()))
        opened = open_encoder("hf:lab/dinov2")
        import_run(opened, tmp_path / "run", branch="student")
        for path in reversed(caches.files()):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        again = load_encoder(tmp_path / "run")
        assert same(again, opened.encoder.state_dict()) and read_config(tmp_path / "run") == opened.config

    def test_a_folder_and_shards(self, caches: Caches, tmp_path: Path) -> None:
        model = vit()
        transformers.ViTImageProcessor(size=square()).save_pretrained(tmp_path / "saved")
        model.save_pretrained(tmp_path / "saved", max_shard_size="4KB")
        files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
        assert "model.safetensors.index.json" in files
        assert "22 of 22 tensors" in open_encoder(f"hf:{tmp_path / 'saved'}").text
        last = max(name for name in files if name.endswith("safetensors"))
        caches.put("lab/vit", {name: content for name, content in files.items() if name != last})
        assert f"{last} of hf:lab/vit is not on this machine" in refused("hf:lab/vit")
        caches.put("lab/vit", {last: files[last]})
        assert "22 of 22 tensors" in open_encoder("hf:lab/vit").text
        (tmp_path / "saved" / "preprocessor_config.json").unlink()
        assert "has no preprocessor_config.json" in refused(f"hf:{tmp_path / 'saved'}")

    def test_what_is_missing_or_cut(self, caches: Caches, tmp_path: Path) -> None:
        files = save_model(tmp_path / "saved", vit(), transformers.ViTImageProcessor(size=square()))
        for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
            message = refused("hf:lab/vit")
            assert message.startswith(f"{name} of hf:lab/vit is not on this machine") and "--download" in message
            caches.put("lab/vit", {name: files[name]})
        caches.interrupt("lab/vit", "model.safetensors")
        assert "model.safetensors is damaged, perhaps by an interrupted download" in refused("hf:lab/vit")
        assert caches.attempts == []
        message = refused("hf:lab/other", download=True)
        assert message.startswith(
            "config.json of hf:lab/other cannot be downloaded from https://huggingface.co/lab/other"
        )
        assert "Network is unreachable" in message

    @pytest.mark.parametrize(("make", "text"), [
        (lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**SHAPE)), "different features for one image"),
        (lambda: transformers.BertModel(transformers.BertConfig(
            vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)),
         "does not take images alone"),
    ])  # fmt: skip
    def test_what_is_no_encoder_of_images(self, caches: Caches, tmp_path: Path, make: Any, text: str) -> None:
        caches.put("lab/x", save_model(tmp_path / "saved", make(), transformers.ViTImageProcessor(size=square())))
        assert text in refused("hf:lab/x", MatrixSSLError)

    def test_weights_that_do_not_match(self, caches: Caches, tmp_path: Path) -> None:
        files = save_model(tmp_path / "saved", vit(), transformers.ViTImageProcessor(size=square()))
        tensors = safetensors.torch.load(files["model.safetensors"])
        name = "vit.layernorm.bias"
        for changed, text in (({k: v for k, v in tensors.items() if k != name}, "matches 21 of 22 tensors"),
                              (tensors | {name: torch.zeros(3)}, "layernorm.bias"),
                              (tensors | {"vit.extra.weight": torch.zeros(3)}, "extra.weight"),
                              ({k: v for k, v in tensors.items() if "classifier" in k}, "matches 0 of 22 tensors"),
                              (tensors | {name: torch.full((16,), torch.nan)}, "not finite")):  # fmt: skip
            snapshot = caches.put("lab/vit", {})
            for path in snapshot.iterdir():
                path.unlink()
            content = safetensors.torch.save(changed, {"format": "pt"})
            caches.put("lab/vit", files | {"model.safetensors": content})
            assert text in refused("hf:lab/vit")

    def test_code_of_a_folder_never_runs(self, caches: Caches, tmp_path: Path) -> None:
        files = save_model(tmp_path / "saved", vit(), transformers.ViTImageProcessor(size=square()))
        own = {"model_type": "own", "auto_map": {"AutoModel": "own.Own", "AutoConfig": "own.Config"}}
        config = json.loads(files["config.json"]) | own
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
        caches.put("lab/own", files | {"config.json": json.dumps(config).encode(), "own.py": code})
        assert "never run" in refused("hf:lab/own")
        assert not (tmp_path / "ran").exists()

    def test_an_export_comes_back(self, caches: Caches, tmp_path: Path) -> None:
        from matrix_ssl.encoder.exporting import export

        make, processor, _ = MODELS["swin"]
        caches.put("lab/swin", save_model(tmp_path / "saved", make(), processor()))
        opened = open_encoder("hf:lab/swin")
        import_run(opened, tmp_path / "run", branch="student")
        assert "43 of 43 tensors" in export(tmp_path / "run", form="safetensors")
        back = open_checkpoint(tmp_path / "run" / "export.safetensors")
        assert same(back.encoder, opened.encoder.state_dict())
        assert back.config.network == replace(opened.config.network, stem=back.config.network.stem)
        assert back.config.data == opened.config.data
        with pytest.raises(ConfigError, match="'hf:lab/swin' is not a torchvision architecture"):
            export(tmp_path / "run", form="torchvision")
