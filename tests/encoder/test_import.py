"""Encoders in the checkpoints of other programs: which tensors they are, which architecture, and what is refused."""

import re
from collections.abc import Iterable

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from matrix_ssl.encoder import Weights, architectures
from matrix_ssl.encoder.matching import Match, find_encoder
from matrix_ssl.encoder.opening import open_checkpoint
from matrix_ssl.encoder.reading import Contents, read_tensors
from matrix_ssl.errors import CheckpointError, ConfigError, MatrixSSLError
from tests.support import published_layouts as published
from tests.support.published_layouts import PUBLISHED
from tests.support.quick import some

COUNTERS = 20  # BatchNorm layers of a ResNet-18


@pytest.fixture(scope="module")
def student() -> torchvision.models.ResNet:
    return published.resnet()


def find(
    tensors: dict[str, Tensor],
    *,
    architecture: str | None = None,
    branch: Weights = "student",
    image_size: int | None = None,
    channels: int = 3,
    metadata: dict[str, str] | None = None,
    lightning: bool = False,
) -> Match:
    return find_encoder(
        Contents(tensors, metadata or {}, lightning, ""), "FILE",
        architecture=architecture, branch=branch, image_size=image_size, channels=channels,
    )  # fmt: skip


def refused(tensors: dict[str, Tensor], kind: type[MatrixSSLError] = CheckpointError, **options: object) -> str:
    with pytest.raises(kind) as caught:
        find(tensors, **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith("FILE") or kind is ConfigError
    return str(caught.value)


def body(model: nn.Module, heads: Iterable[str] = ("fc.",)) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if not name.startswith(tuple(heads))}


def outline(name: str, **options: int) -> dict[str, Tensor]:
    """torchvision's tensors of an architecture, zeros that take no memory."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **options)
    return {key: torch.zeros((), dtype=t.dtype).expand(t.shape) for key, t in model.state_dict().items()}


class TestPublishedFormats:
    @pytest.mark.parametrize(
        "program", some(PUBLISHED, "Matrix-SSL, MEC", "BYOL, lucidrains", "solo-learn", "DINO", "torchvision")
    )
    def test_every_tensor_of_the_encoder_and_the_number_of_others(self, student, tmp_path, program) -> None:
        build, aside, has_teacher = PUBLISHED[program]
        torch.save(build(student), tmp_path / "x.pth.tar")
        contents = read_tensors(tmp_path / "x.pth.tar")
        found = find(contents.tensors)
        counts = found.counts.to_dict()
        assert (counts["architecture"], counts["tensors"], counts["counters"]) == ("resnet18", 120, 0)
        assert sum(counts["beside"].values()) == aside
        assert re.match(
            rf"120 of 120 tensors of resnet18 matched(?: under '[\w.]+')?, {aside} ignored", found.counts.text
        )
        expected = body(student)
        assert found.tensors.keys() == expected.keys()
        assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)
        if has_teacher:
            teacher, moved = find(contents.tensors, branch="teacher").tensors, published.moved(student).state_dict()
            assert teacher.keys() == expected.keys() and all(torch.equal(teacher[n], moved[n]) for n in expected)
        else:
            assert "has no teacher, its encoder is" in refused(contents.tensors, branch="teacher")

    def test_the_encoder_computes_what_the_original_does(self, student, tmp_path) -> None:
        torch.save(published.simsiam(student), tmp_path / "x.pth.tar")
        opened = open_checkpoint(tmp_path / "x.pth.tar", image_size=64)
        assert (opened.config.network.encoder, opened.config.network.stem) == ("resnet18", "standard")
        assert (opened.config.recipe, opened.config.data.source) == ("imported", "")
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        assert torch.equal(opened.encoder(images), published.with_head(student, nn.Identity()).eval()(images))

    def test_images_are_prepared_as_asked(self, student, tmp_path) -> None:
        torch.save(published.simsiam(student), tmp_path / "x.pth.tar")
        data = open_checkpoint(tmp_path / "x.pth.tar", crop_fraction=1.0, crop_mode="squash").config.data
        assert (data.crop_fraction, data.crop_mode) == (1.0, "squash")
        data = open_checkpoint(tmp_path / "x.pth.tar").config.data
        assert (data.crop_fraction, data.crop_mode) == (0.875, "centre")
        with pytest.raises(ConfigError, match="crop_mode"):
            open_checkpoint(tmp_path / "x.pth.tar", crop_mode="border")

    def test_what_is_left_aside_is_named(self, student, tmp_path) -> None:
        torch.save(published.moco_v2(student), tmp_path / "x.pth.tar")
        assert open_checkpoint(tmp_path / "x.pth.tar").text == (
            "120 of 120 tensors of resnet18 matched under 'state_dict.module.encoder_q', 130 ignored: "
            "2 of the queue (state_dict.module.queue, state_dict.module.queue_ptr); "
            "124 of the teacher (state_dict.module.encoder_k); "
            "4 of the head (state_dict.module.encoder_q.fc)."
        )

    def test_timm(self, tmp_path) -> None:
        timm = pytest.importorskip("timm")
        torch.manual_seed(0)
        for name, heads, expected in (
            ("resnet18", "fc.", "resnet18"),
            ("vit_tiny_patch16_224", "head.", "timm/vit_tiny_patch16_224"),
        ):
            model = timm.create_model(name).eval()
            torch.save(model.state_dict(), tmp_path / "x.pth")
            opened = open_checkpoint(tmp_path / "x.pth")
            assert opened.config.network.encoder == expected
            tensors = body(model, [heads])
            found = opened.encoder.state_dict()
            assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
            images = torch.rand(1, 3, 224, 224)
            features = model.forward_head(model.forward_features(images), pre_logits=True)
            torch.testing.assert_close(opened.encoder(images), features)

    def test_transformers(self) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        basic = transformers.ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
        model = transformers.ResNetForImageClassification(basic).eval()
        for each, aside in ((model, 2), (model.resnet, 0)):
            found = find(each.state_dict(), image_size=64)
            assert f"120 of 120 tensors of resnet18 matched{' under ' if aside else ''}" in found.counts.text
            assert f"{aside} ignored" in found.counts.text
        plain = torchvision.models.resnet18()
        plain.fc = nn.Identity()
        plain.load_state_dict(found.tensors)
        images = torch.rand(2, 3, 64, 64)
        expected = model.resnet(images).pooler_output.flatten(1)
        torch.testing.assert_close(plain.eval()(images), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("name", "size"), [
        ("hiera_tiny_224", 224),  # positions four pixels apart under patches of seven
        ("samvit_base_patch16", 1024), ("volo_d1_224", 224),  # positions in rows and columns
        ("halonet26t", 256),  # takes no images of 224 pixels
        ("pit_ti_224", 224),  # positions of four dimensions come before the convolution
        ("deit_tiny_distilled_patch16_224", 224),  # two heads
        ("tresnet_m", 224),  # pixels become channels before the first convolution
    ])  # fmt: skip
    def test_architectures_of_timm_by_name(self, name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every tensor of the whole model, with its classifier, is found as in a file of published weights."""
        timm = pytest.importorskip("timm")
        monkeypatch.setattr("matrix_ssl.encoder.matching._take", lambda *_: ({}, []))  # here they have no values
        with torch.device("meta"):
            model, plain = timm.create_model(name), timm.create_model(name, num_classes=0)
        found = find(model.state_dict(), architecture=f"timm/{name}", image_size=size)
        assert found.image_size == size
        assert found.counts.tensors == len(plain.state_dict())
        assert sum(map(len, found.counts.beside.values())) == len(model.state_dict()) - len(plain.state_dict())

    def test_an_architecture_without_a_convolution(self) -> None:
        pytest.importorskip("timm")
        message = refused({"x": torch.ones(1)}, ConfigError, architecture="timm/gemma4_vit_167m")
        assert "begins with no convolution, by which an encoder is found" in message

    def test_a_published_layout_of_a_vision_transformer(self) -> None:
        """MoCo v3's ViT-Base: timm's names under base_encoder, a projector as head."""
        timm = pytest.importorskip("timm")
        with torch.device("meta"):
            model = timm.create_model("vit_base_patch16_224", num_classes=0)
        tensors = {f"module.base_encoder.{n}": torch.zeros(()).expand(t.shape) for n, t in model.state_dict().items()}
        tensors |= {f"module.base_encoder.head.{n}": t for n, t in published.head(768, 4).state_dict().items()}
        found = find(tensors)
        assert found.counts.text.startswith(
            "150 of 150 tensors of timm/vit_base_patch16_224 matched under 'module.base_enc"
        )
        assert found.image_size == 224


class TestArchitectures:
    @pytest.mark.parametrize("name", some(architectures.RESNETS, "resnet34", "resnet50", "resnext50_32x4d"))
    def test_resnets_by_their_shapes(self, name) -> None:
        tensors = outline(name)
        found = find(tensors)
        assert (found.network.encoder, found.network.stem) == (name, "standard")
        assert (
            found.counts.text
            == f"{len(tensors) - 2} of {len(tensors) - 2} tensors of {name} matched, 2 ignored: 2 of the head (fc)."
        )

    def test_the_list_is_complete(self) -> None:
        assert set(architectures.RESNETS) == {
            name for name in torchvision.models.list_models(module=torchvision.models) if "resne" in name
        }

    @pytest.mark.parametrize(
        ("name", "size"), [("vit_b_16", 224), ("vit_b_32", 384), pytest.param("vit_l_16", 64, marks=pytest.mark.slow)]
    )
    def test_vision_transformers_of_torchvision_and_their_size(self, name, size) -> None:
        tensors = outline(name, image_size=size)
        found = find(tensors)
        assert (found.network.encoder, found.image_size) == (name, size)
        message = refused(tensors, ConfigError, image_size=96)
        assert message == f"--image-size 96: this encoder takes {size} pixels; use --image-size {size}."

    def test_a_small_stem(self, student) -> None:
        tensors = body(student) | {"conv1.weight": torch.rand(64, 3, 3, 3)}
        assert find(tensors).network.stem == "small"
        children = nn.Sequential(*list(student.children())[:-1]).state_dict() | {"0.weight": torch.rand(64, 3, 3, 3)}
        assert find(children).network.stem == "small"

    def test_any_architecture_that_is_named(self) -> None:
        model = torchvision.models.shufflenet_v2_x0_5()
        tensors = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        found = find(tensors, architecture="shufflenet_v2_x0_5")
        assert "2 ignored: 2 of the head (module.fc)" in found.counts.text
        assert found.tensors.keys() == body(model).keys()

    def test_another_one_than_asked_for(self, student) -> None:
        tensors = body(student)
        assert refused(tensors, ConfigError, architecture="resnet34") == (
            "FILE holds resnet18, not resnet34; use --architecture resnet18."
        )
        assert "FILE holds resnet18, not vit_b_16" in refused(tensors, ConfigError, architecture="vit_b_16")
        assert "Did you mean 'resnet18'?" in refused(tensors, ConfigError, architecture="resnet8")
        assert refused(tensors, ConfigError, architecture="resnet34", metadata={"architecture": "resnet18"}) == (
            "FILE holds resnet18, not resnet34; use --architecture resnet18."
        )

    def test_none_that_is_known(self) -> None:
        assert "no known encoder: none of its 2 tensors (stem.weight, last.weight, ...)" in refused(
            {"stem.weight": torch.ones(1), "last.weight": torch.ones(1)}
        )
        odd = {"patch_embed.proj.weight": torch.ones(100, 3, 16, 16)}
        assert "an encoder of unknown architecture; name it with --architecture" in refused(odd)


class TestStrictness:
    def test_a_missing_tensor(self, student) -> None:
        tensors = body(student)
        del tensors["layer3.1.bn2.running_var"]
        for architecture in (None, "resnet18"):
            message = refused(tensors, architecture=architecture)
            assert message == (
                "FILE, read as resnet18, matches 119 of 120 tensors of the network; "
                "1 missing: layer3.1.bn2.running_var."
            )

    def test_another_shape(self, student) -> None:
        tensors = body(student) | {"layer2.0.conv1.weight": torch.ones(128, 64, 1, 1)}
        assert "1 of another shape: layer2.0.conv1.weight (128, 64, 1, 1) instead of (128, 64, 3, 3)" in refused(
            tensors
        )

    def test_a_layer_too_many_inside_the_encoder(self, student) -> None:
        tensors = body(student) | {"layer1.2.conv1.weight": torch.ones(64, 64, 3, 3)}
        assert "1 not in the network: layer1.2.conv1.weight" in refused(tensors)

    @pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
    def test_layers_within_blocks_that_are_named_like_a_head(self, student, prefix) -> None:
        """Squeeze and excitation, as in moskomule/senet.pytorch, and a BatchNorm at the end: other functions."""
        plain = {prefix + name: tensor for name, tensor in student.state_dict().items()}
        for others in (
            {"layer1.0.se.fc.0.weight": torch.ones(4, 64), "layer1.0.se.fc.2.weight": torch.ones(64, 4)},
            {"layer4.1.linear.weight": torch.ones(512, 512), "layer4.1.projection.weight": torch.ones(2)},
            {"bn.weight": torch.ones(512), "bn.bias": torch.ones(512)},
        ):
            message = refused(plain | {prefix + name: tensor for name, tensor in others.items()})
            assert f"matches 120 of 120 tensors of the network; 2 not in the network: {sorted(others)[0]}" in message
        assert "4 of the head" in find(plain | {f"{prefix}head_dist.{n}": torch.ones(2) for n in "ab"}).counts.text

    def test_something_that_no_rule_explains_beside_the_encoder(self, student) -> None:
        tensors = {f"encoder.{name}": tensor for name, tensor in body(student).items()}
        tensors |= {"critic.weight": torch.ones(2), "predictor.0.weight": torch.ones(2)}
        message = refused(tensors)
        assert "1 tensors that no rule explains, such as critic.weight; save the state dict of the encoder" in message

    def test_a_moving_average_of_torchvisions_training(self, student) -> None:
        """Its ``AveragedModel`` counts what it has averaged."""
        both = {f"model.{name}": tensor for name, tensor in student.state_dict().items()}
        both |= {f"model_ema.module.{n}": t for n, t in published.moved(student).state_dict().items()}
        both["model_ema.n_averaged"] = torch.tensor(5)
        assert "1 of the progress (model_ema.n_averaged)" in find(both).counts.text
        assert torch.equal(find(both, branch="teacher").tensors["bn1.weight"], both["model_ema.module.bn1.weight"])

    def test_two_different_encoders(self, student) -> None:
        two = {f"left.{name}": t for name, t in body(student).items()}
        two |= {f"right.{name}": t for name, t in body(published.moved(student)).items()}
        assert "several encoders, 'left', 'right'" in refused(two)

    def test_a_teacher_alone(self, student) -> None:
        tensors = {f"teacher.{name}": t for name, t in body(student).items()}
        assert "has no student, its encoder is 'teacher'; use --branch teacher" in refused(tensors)
        assert "120 of 120" in find(tensors, branch="teacher").counts.text

    def test_counters_may_be_absent_together_and_only_together(self, student) -> None:
        tensors = body(student)
        counters = [name for name in tensors if name.endswith("num_batches_tracked")]
        assert len(counters) == COUNTERS
        old = {name: tensor for name, tensor in tensors.items() if name not in counters}
        found = find(old)
        assert found.counts.text == (
            "100 of 120 tensors of resnet18 matched, 0 ignored. "
            "20 counters num_batches_tracked are missing and set to 0; features do not depend on them."
        )
        assert found.tensors.keys() == tensors.keys()
        assert all(int(found.tensors[name]) == 0 and found.tensors[name].dtype == torch.int64 for name in counters)
        old[counters[0]] = tensors[counters[0]]
        assert "19 missing" in refused(old)
        del old["bn1.weight"]
        assert "20 missing: bn1.weight" in refused(old)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_types_become_float32_and_are_named(self, student, dtype) -> None:
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in body(student).items()}
        found = find(tensors)
        assert found.counts.text.endswith(f". {str(dtype).removeprefix('torch.')} numbers converted to float32.")
        assert torch.equal(found.tensors["conv1.weight"], tensors["conv1.weight"].float())

    def test_numbers_that_are_no_weights(self, student) -> None:
        whole = body(student) | {"bn1.weight": torch.ones(64, dtype=torch.int8)}
        assert "bn1.weight holds numbers of type torch.int8, not torch.float32" in refused(whole)
        diverged = body(student) | {"bn1.weight": torch.full((64,), torch.nan)}
        assert "bn1.weight has values that are not finite; its training has diverged" in refused(diverged)

    def test_encoders_that_only_look_alike(self, student) -> None:
        """Equal in every name and shape, and yet other functions."""
        small = body(student) | {"conv1.weight": torch.rand(64, 3, 3, 3)}
        solo = {f"backbone.{name}": t for name, t in small.items()} | {"classifier.weight": torch.ones(5, 512)}
        assert "pads by 2 pixels" in refused(solo, lightning=True)
        assert "120 of 120" in find(solo).counts.text
        tensors = {"module.base_encoder.patch_embed.proj.weight": torch.ones(384, 3, 16, 16)}
        assert "12 heads where timm's has 6" in refused(tensors)

    def test_settings_out_of_range(self, student, tmp_path) -> None:
        torch.save(body(student), tmp_path / "x.pth")
        for options, words in (
            ({"mean": (0.5, 0.5), "std": (1,)}, "expected 1 to 16 numbers each"),
            ({"crop_fraction": 1.5}, "data.crop_fraction=1.5: expected a number from 0.01 to 1"),
        ):
            with pytest.raises(ConfigError, match=words):
                open_checkpoint(tmp_path / "x.pth", **options)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=r"1 of another shape: conv1\.weight \(64, 3, 7, 7\)"):
            open_checkpoint(tmp_path / "x.pth", mean=(0.5,), std=(0.5,))

    @pytest.mark.parametrize(("name", "text", "words"), [
        ("image_size", "x", "The file's metadata image_size='x' is not JSON"),
        ("image_size", "[1]", "The file's image_size=[1]: expected an integer"),
        ("mean", "{", "The file's metadata mean='{' is not JSON"),
        ("mean", '"a"', "data.mean=a: expected values separated by commas, each a finite number"),
        ("std", "[1, 2]", "expected 1 to 16 numbers each"),
    ])  # fmt: skip
    def test_metadata_that_was_written_by_hand(self, student, tmp_path, name, text, words) -> None:
        metadata = {"architecture": "resnet18", "weights": "student", "method": "mec", name: text}
        save_file(body(student), tmp_path / "x.safetensors", metadata)
        with pytest.raises((CheckpointError, ConfigError), match=re.escape(words)):
            open_checkpoint(tmp_path / "x.safetensors")

    def test_the_older_form_of_pytorch_files(self, student, tmp_path) -> None:
        torch.save(published.moco_v2(student), tmp_path / "x.pth.tar", _use_new_zipfile_serialization=False)
        assert "120 of 120 tensors" in open_checkpoint(tmp_path / "x.pth.tar").text
        assert len(read_tensors(tmp_path / "x.pth.tar").tensors) == 250
