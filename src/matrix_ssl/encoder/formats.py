"""Export formats: the encoders that each can hold, and its files, loaded back by the program they are for.

A format is a function that writes an encoder into a folder, checks what its program loads back and returns an
``Exported``. A format that cannot hold every encoder also has a function that says why; ``exporting.FORMATS`` lists
both.
"""

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from matrix_ssl import networks
from matrix_ssl.config import DataConfig, RunConfig
from matrix_ssl.config.reading import MOST_CHANNELS
from matrix_ssl.data.hub import open_pretrained, quiet_transformers
from matrix_ssl.encoder import architectures, names
from matrix_ssl.errors import CheckpointError, import_extra
from matrix_ssl.runs.checkpoint import encode, read_safetensors

_RESNETS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3),
            "resnet152": (3, 8, 36, 3)}  # blocks of each stage  # fmt: skip
_BASIC = ("resnet18", "resnet34")  # two convolutions per block; the others have three
_COUNTER = "num_batches_tracked"
_TOLERANCE = 1e-5  # relative difference of features computed by a different program with the same weights, float32


@dataclass(frozen=True)
class Model:
    """An encoder to export."""

    encoder: nn.Module  # in evaluation mode
    config: RunConfig
    metadata: dict[str, str]  # facts for the file: architecture, weights, method, normalisation

    @property
    def name(self) -> str:
        """The architecture."""
        return self.config.network.encoder

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers under the names of this package."""
        return self.encoder.state_dict()

    @property
    def has_small_stem(self) -> bool:
        """Whether the first convolution of a ResNet is the one for small images."""
        return architectures.is_resnet(self.name) and self.tensors["conv1.weight"].shape[2:] == (3, 3)


@dataclass(frozen=True)
class Exported:
    """The files of a format, written into a folder and loaded back by its library."""

    weights: str  # name of the file with the weights
    checked: str  # the comparison, such as "62 of 62 tensors of resnet18 (student)"
    code: str  # Python that loads the file
    library: str  # its name on the Hugging Face hub
    notes: list[str] = field(default_factory=list)  # paragraphs on how to use it


def holds_all(_: Model) -> str | None:
    """Gives no reason, for formats that hold every encoder."""
    return None


def not_in_torchvision(model: Model) -> str | None:
    """Why torchvision cannot load an encoder; None if it can."""
    other = model.name == networks.TINY_RESNET or model.name.startswith(("timm/", "hf:"))
    return f"{model.name!r} is not a torchvision architecture" if other else None


def not_in_timm(model: Model) -> str | None:
    """Why timm cannot load an encoder; None if it can."""
    return None if model.name.startswith("timm/") else not_a_resnet(
        "timm", model, known=architectures.RESNETS, channels=range(1, MOST_CHANNELS + 1)
    )  # fmt: skip


def not_a_resnet(
    program: str, model: Model, *, known: Sequence[str] = tuple(_RESNETS), channels: Sequence[int] = (3,)
) -> str | None:
    """Why a program that has torchvision's ResNets cannot load an encoder; None if it can."""
    if model.name not in known:
        return f"{model.name!r} is not a ResNet that {program} has under the same name"
    if (count := len(model.config.data.mean)) not in channels:
        return f"{program} takes colours, and this encoder takes {count} channel{'s' * (count > 1)}"
    if not model.has_small_stem:
        return None
    return (
        f"{program} has no {model.name} with the stem for small images (one trained with --set network.stem=standard "
        "has the usual stem)"
    )


def write_safetensors(model: Model, folder: Path, name: str) -> Exported:
    """One file with the names of this package; its metadata lets ``matrix-ssl import`` restore everything."""
    (folder / name).write_bytes(encode(model.tensors, model.metadata))
    back, _ = read_safetensors(folder / name)
    code = f"import safetensors.torch\n\ntensors = safetensors.torch.load_file({name!r})"
    return Exported(name, _compare(model, back), code, "safetensors")


def write_torchvision(model: Model, folder: Path, name: str) -> Exported:
    """A state dict for ``torch.load`` with torchvision's names, without the classifier."""
    _save(dict(model.tensors), folder / name)
    size, channels = model.config.data.image_size, len(model.config.data.mean)
    sized = {"image_size": size} if model.name.startswith("vit_") else {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", FutureWarning)  # some architectures announce a change of initialisation
        plain: Any = torchvision.models.get_model(model.name, weights=None, **sized)
    lines = [f"model = torchvision.models.{model.name}({f'image_size={size}' if sized else ''})"]
    if model.has_small_stem:
        plain.conv1, plain.maxpool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.Identity()
        lines += [f"model.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)",
                  "model.maxpool = torch.nn.Identity()"]  # fmt: skip
    elif channels != 3:
        first, convolution = networks.take_channels(plain, channels)
        lines.append(f"model.set_submodule({first!r}, torch.nn.{convolution})")
    missing, _ = plain.load_state_dict(torch.load(folder / name, weights_only=True), strict=False)
    classifiers = sorted({key.rpartition(".")[0] for key in missing})
    lines.append(f"model.load_state_dict(torch.load({name!r}), strict=False)  # all but {', '.join(classifiers)}")
    checked = _compare(model, {key: tensor for key, tensor in plain.state_dict().items() if key not in missing})
    return Exported(name, checked, "\n".join(["import torch, torchvision", "", *lines]), "torchvision")


def write_timm(model: Model, folder: Path, name: str) -> Exported:
    """A safetensors file that ``timm.create_model`` takes as its checkpoint."""
    timm = import_extra("timm", extra="timm")
    (folder / name).write_bytes(encode(model.tensors, model.metadata))
    architecture, data = model.name.removeprefix("timm/"), model.config.data
    arguments: dict[str, Any] = {"num_classes": 0}
    if len(data.mean) != 3:
        arguments["in_chans"] = len(data.mean)
    if model.config.network.patch_size:
        arguments["patch_size"] = model.config.network.patch_size
    with torch.random.fork_rng(devices=[]):
        try:
            sized = arguments | {"img_size": data.image_size}
            back = timm.create_model(architecture, checkpoint_path=str(folder / name), **sized)
            arguments = sized
        except TypeError:  # convolutional architectures take any size and refuse the argument
            back = timm.create_model(architecture, checkpoint_path=str(folder / name), **arguments)
    keywords = "".join(f", {key}={value}" for key, value in arguments.items())
    code = f"import timm\n\nmodel = timm.create_model({architecture!r}, checkpoint_path={name!r}{keywords})"
    return Exported(name, _compare(model, back.state_dict()), code, "timm")


def write_huggingface(model: Model, folder: Path, name: str) -> Exported:
    """A folder for ``transformers.AutoModel.from_pretrained``: configuration, weights and preprocessing.

    Blocks with three convolutions have their stride in the second one, 3x3, like torchvision's and like those of
    ``ResNetModel`` with ``downsample_in_bottleneck`` false.
    """
    transformers = import_extra("transformers", extra="huggingface")
    data, wide = model.config.data, 1 if model.name in _BASIC else 4
    size, resized = data.image_size, round(data.image_size / data.crop_fraction)
    configuration = {
        "architectures": ["ResNetModel"], "model_type": "resnet", "num_channels": 3, "embedding_size": 64,
        "hidden_sizes": [64 * wide, 128 * wide, 256 * wide, 512 * wide], "depths": _RESNETS[model.name],
        "layer_type": "basic" if wide == 1 else "bottleneck", "hidden_act": "relu",
        "downsample_in_first_stage": False, "downsample_in_bottleneck": False, "dtype": "float32",
    }  # fmt: skip
    sides = ("height", "width") if data.crop_mode == "squash" else ("shortest_edge",)
    preprocessing = {
        "image_processor_type": "BitImageProcessor", "do_convert_rgb": True,
        "do_resize": True, "size": dict.fromkeys(sides, resized), "resample": 2,
        "do_center_crop": True, "crop_size": {"height": size, "width": size},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": data.mean, "image_std": data.std,
    }  # fmt: skip
    renamed = {names.huggingface(key): tensor for key, tensor in model.tensors.items()}
    (folder / "model.safetensors").write_bytes(encode(renamed, model.metadata | {"format": "pt"}))
    for file, values in (("config.json", configuration), ("preprocessor_config.json", preprocessing)):
        (folder / file).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    with quiet_transformers():
        auto, place = transformers.AutoModel, str(folder)
        back = open_pretrained(auto.from_pretrained, place, place=place, local_files_only=True).eval()
    theirs = back.state_dict()
    checked = _compare(model, {key: theirs[names.huggingface(key)] for key in model.tensors}, total=len(theirs))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        check_features(back(image).pooler_output.flatten(1), model.encoder(image), "transformers")
    code = "\n".join([
        "from transformers import AutoImageProcessor, AutoModel", "",
        f"processor = AutoImageProcessor.from_pretrained({name!r})",
        f"model = AutoModel.from_pretrained({name!r})",
        'features = model(**processor(images, return_tensors="pt")).pooler_output.flatten(1)',
    ])  # fmt: skip
    return Exported("model.safetensors", checked, code, "transformers", _levels(data))


def write_detectron2(model: Model, folder: Path, name: str) -> Exported:
    """A state dict with the names of detectron2's ResNet, for ``MODEL.WEIGHTS``.

    detectron2 prepends ``backbone.`` or ``backbone.bottom_up.`` by itself, because it matches names by their suffixes.
    Its frozen BatchNorm has no counters ``num_batches_tracked``, so they are omitted. detectron2 cannot be installed
    from the package index: the names were compared with its source code, and here the file is read back by PyTorch.
    """
    renamed = {names.detectron2(key): key for key in model.tensors if not key.endswith(_COUNTER)}
    _save({theirs: model.tensors[key] for theirs, key in renamed.items()}, folder / name)
    loaded = torch.load(folder / name, weights_only=True)
    counters = {key: tensor for key, tensor in model.tensors.items() if key.endswith(_COUNTER)}
    checked = _compare(
        model, {key: loaded[theirs] for theirs, key in renamed.items()} | counters, omitted=len(counters)
    )
    data = model.config.data
    mean, std = ([round(255 * value, 3) for value in values] for values in (data.mean, data.std))
    lines = ["from detectron2.config import get_cfg", "", "cfg = get_cfg()", f'cfg.MODEL.WEIGHTS = {name!r}',
             f"cfg.MODEL.RESNETS.DEPTH = {model.name.removeprefix('resnet')}",
             *(["cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64"] if model.name in _BASIC else []),
             "cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False  # the stride is in the 3x3 convolution",
             'cfg.INPUT.FORMAT = "RGB"', f"cfg.MODEL.PIXEL_MEAN = {mean}", f"cfg.MODEL.PIXEL_STD = {std}"]  # fmt: skip
    note = (
        "detectron2's own defaults are BGR images and a stride in the 1x1 convolution: without the lines above the "
        "same weights give different features. MoCo (He et al., CVPR 2020) fine-tunes such encoders with synchronised "
        'BatchNorm, cfg.MODEL.RESNETS.NORM = "SyncBN", and all stages, cfg.MODEL.BACKBONE.FREEZE_AT = 0.'
    )
    return Exported(name, checked, "\n".join(lines), "detectron2", [note, *_levels(data)])


def _levels(data: DataConfig) -> list[str]:
    """Notes for programs that take 8-bit images, about an encoder that was trained with other levels."""
    low, high = data.value_range if data.channels and data.value_range else (0, data.white_level or 255)
    if (low, high) == (0, 255):
        return []
    return [
        "The preprocessing is that of images of 8 bits, and the encoder was trained with "
        f"{low:g} as 0 and {high:g} as 1: scale such images to 0 to 255 first."
    ]


def check_features(features: Tensor, expected: Tensor, program: str) -> float:
    """The largest deviation of a program's features (n, k) from PyTorch's, relative to their maximum or to 1.

    Raises CheckpointError if it is above 1e-5.
    """
    difference = float((features - expected).abs().max() / expected.abs().max().clamp_min(1))
    if not difference <= _TOLERANCE or features.shape != expected.shape:
        raise CheckpointError(f"{program} computes features that differ by {difference:.1e}; no file was written.")
    return difference


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Saves with ``torch.save``, whose own file writer reports a full disk with an error that does not say so."""
    content = io.BytesIO()
    torch.save(tensors, content)
    path.write_bytes(content.getbuffer())


def _compare(model: Model, back: dict[str, Tensor], *, total: int | None = None, omitted: int = 0) -> str:
    """``N of N tensors``, after a bit-for-bit comparison with those that were loaded back."""
    tensors = model.tensors
    same = back.keys() == tensors.keys() and (total or len(back)) == len(tensors)
    if not same or not all(torch.equal(back[key], tensors[key]) for key in tensors):
        raise CheckpointError(
            f"The tensors of {model.name} do not load back as they were written; no file was written."
        )
    text = f"{len(tensors) - omitted} of {len(tensors)} tensors of {model.name} ({model.metadata['weights']})"
    return text + (f", all but {omitted} counters {_COUNTER}" if omitted else "")
