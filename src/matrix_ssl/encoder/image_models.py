"""Image models of transformers with weights and preprocessing, from the hub's cache or a folder."""

import dataclasses
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from matrix_ssl.config import DataConfig, NetworkConfig
from matrix_ssl.config.reading import CropMode
from matrix_ssl.config.untrusted import expanded, file_sha256, parse_json, read_file
from matrix_ssl.data.files.squares import centre_box
from matrix_ssl.data.hub import open_pretrained, quiet_transformers
from matrix_ssl.data.views.augment import crop, normalise
from matrix_ssl.encoder import names
from matrix_ssl.encoder.caches import absent, fetch_from_hub, find_in_hub, hub_place
from matrix_ssl.encoder.matching import Counts
from matrix_ssl.errors import CheckpointError, is_out_of_memory

_CONFIG, _PREPROCESSING = "config.json", "preprocessor_config.json"
_WEIGHTS, _SHARDS = "model.safetensors", "model.safetensors.index.json"
# keys of a configuration on which its encoder does not depend
_UNUSED = {"transformers_version", "architectures", "dtype", "torch_dtype", "auto_map", "id2label", "label2id",
           "_name_or_path", "_attn_implementation", "problem_type"}  # fmt: skip
_LISTED = 4  # names listed in an error
_LEVIT = 256 / 224  # factor by which LeViT's processor resizes beyond its stated size
_CLOSE = 1e-3  # in normalised pixels: less than a tenth of an 8-bit level
_NEAR = 0.1  # in pixels from 0 to 1: the ways to make an image square differ by 0.25


@dataclass(frozen=True)
class Pretrained:
    """The encoder of a model and what is known about it."""

    network: NetworkConfig
    data: DataConfig  # size, crop and normalisation of its images
    tensors: dict[str, Tensor]  # under the names of ``networks.ImageModel``
    counts: Counts
    sha256: str  # of its file, or of its files' digests


def read_image_model(name: str, *, download: bool) -> Pretrained:
    """The encoder of a model, given by its name on the hub or by its folder.

    Only the configuration, preprocessing and safetensors are read; code in the folder never runs.

    Raises:
        CheckpointError: a file is absent, cannot be fetched or is damaged; or the tensors do not match completely.
        MissingExtra: transformers is not installed.
    """
    place = f"hf:{name}"
    folder, files = _folder(name, place, download=download)
    processor, model, info = _load(folder, place)
    tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items() if not _is_pooler(key)}
    _check(info, tensors, place)
    # the whole configuration, because the defaults of a class may change
    values = json.loads(model.config.to_json_string(use_diff=False))
    configuration = {key: value for key, value in values.items() if key not in _UNUSED}
    return Pretrained(
        NetworkConfig(encoder=place, configuration=json.dumps(configuration, sort_keys=True)),
        _data(processor, place),
        tensors,
        Counts(place, len(tensors), 0, "", _beside(info["unexpected_keys"], place), []),
        _sha256(files),
    )


def _load(folder: Path, place: str) -> tuple[Any, Any, dict[str, Any]]:
    """The image processor and the model of a folder, and how its tensors matched."""
    with quiet_transformers(least=logging.CRITICAL) as transformers:
        try:
            processor = open_pretrained(
                transformers.AutoImageProcessor.from_pretrained, str(folder), place=place, local_files_only=True
            )
            model, info = open_pretrained(
                transformers.AutoModel.from_pretrained, str(folder), place=place,
                local_files_only=True, output_loading_info=True, dtype=torch.float32, use_safetensors=True,
                ignore_mismatched_sizes=True,  # ``_check`` raises an error that names them
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise CheckpointError(f"{place}: transformers cannot open it ({reason}).") from error
    return processor, model, info


def _beside(keys: Iterable[str], place: str) -> dict[str, list[str]]:
    """The places of tensors outside the encoder, by what they belong to."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted(keys):
        what, where = (
            ("pooler", "pooler") if _is_pooler(key) else names.beside_an_encoder(key, inside=True) or ("", key)
        )
        if not what:
            raise CheckpointError(f"{place} has tensors that no rule explains, such as {key}; it was not loaded.")
        groups[what].append(where)
    return dict(groups)


def _sha256(files: Sequence[Path]) -> str:
    """The digest of a file, or of the digests of several files."""
    digests = [file_sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _is_pooler(key: str) -> bool:
    return key.startswith("pooler.dense.") or ".pooler.dense." in key


def _check(info: dict[str, Any], tensors: dict[str, Tensor], place: str) -> None:
    reshaped = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    missing = sorted(info["missing_keys"] - set(reshaped))
    faults = [key for key in (*missing, *reshaped) if not _is_pooler(key)]
    if faults:
        raise CheckpointError(
            f"{place} matches {len(tensors) - len(faults)} of {len(tensors)} tensors of the network; {len(faults)} are "
            f"missing or of a different shape: {', '.join(faults[:_LISTED])}{', ...' if faults[_LISTED:] else ''}."
        )
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{place}: {key} has values that are not finite; its training has diverged.")


def _folder(name: str, place: str, *, download: bool) -> tuple[Path, list[Path]]:
    """The folder of a model with all its files, and the files with its weights."""
    local = expanded(name)
    if local.is_dir():
        if (local / _CONFIG).exists():
            _refuse_timm(local / _CONFIG, place)
        files = {each: local / each for each in (_CONFIG, _PREPROCESSING, _WEIGHTS, _SHARDS) if (local / each).exists()}
        for needed in (_CONFIG, _PREPROCESSING, _WEIGHTS):
            if needed not in files and not (needed == _WEIGHTS and _SHARDS in files):
                raise CheckpointError(f"{place} is not a folder of save_pretrained: it has no {needed}.")
        return local, _weight_files(files.get(_WEIGHTS) or files[_SHARDS], lambda shard: local / shard)

    def get(*choices: str) -> Path:
        if path := find_in_hub(name, choices):
            return path
        what = f"{choices[0]} of {place}"
        if not download:
            raise absent(what, source=f"https://huggingface.co/{name}", place=hub_place(name))
        return fetch_from_hub(name, choices, what=what)

    if name.startswith("timm/"):
        raise CheckpointError(f"{place} is a model of timm: use {name}.")
    folder = get(_CONFIG).parent
    _refuse_timm(folder / _CONFIG, place)
    get(_PREPROCESSING)
    return folder, _weight_files(get(_WEIGHTS, _SHARDS), get)


def _refuse_timm(config: Path, place: str) -> None:
    """Raises CheckpointError for a model of timm, which transformers only wraps: it has no preprocessing of its own."""
    try:
        values = parse_json(read_file(config))
    except (OSError, ValueError):  # transformers says what is wrong with it
        return
    if isinstance(values, dict) and "architecture" in values and "pretrained_cfg" in values:
        name = f"timm/{values['architecture']}"
        raise CheckpointError(
            f"{place} is a model of timm: use {name}, or import its {_WEIGHTS} with --architecture {name}."
        )


def _weight_files(first: Path, get: Any) -> list[Path]:
    if first.name != _SHARDS:
        return [first]
    try:
        shards = sorted(set(parse_json(read_file(first))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{first} is damaged; remove it and download it again.") from error
    return [get(shard) for shard in shards]


def _data(processor: Any, place: str) -> DataConfig:
    """Size, crop and normalisation, for pixels in [0, 1], as in a model's preprocessing.

    Its settings are read and compared with what it does to an image: some processors resize to a different size from
    the one they state, swap colours or normalise twice.

    Raises:
        CheckpointError: it does something else to an image.
    """

    def side(size: Any) -> int | None:
        values = [getattr(size, key, None) for key in ("height", "width", "shortest_edge")]
        sides = {value for value in values if value}
        if len(sides) > 1:
            raise CheckpointError(f"{place} takes images that are not square, {values[0]} x {values[1]} pixels.")
        return sides.pop() if sides else None

    resized = side(processor.size) if processor.do_resize else None
    cropped = side(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    size = cropped or resized
    if size is None:
        raise CheckpointError(f"{place}: its {_PREPROCESSING} names no size of images.")
    if getattr(processor, "rescale_offset", None):
        raise CheckpointError(f"{place} shifts its pixels (rescale_offset), which no setting here expresses.")
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    if processor.do_normalize and getattr(processor, "include_top", False):  # EfficientNet's divides by std once more
        std = tuple(value**2 for value in std)
    data = DataConfig(
        image_size=size, mean=tuple(value / scale for value in mean), std=tuple(value / scale for value in std)
    )
    crop = getattr(processor, "crop_pct", None) or 1.0  # ConvNeXt's, below 384 pixels, and PoolFormer's
    sides = (resized or size, int((resized or size) / crop), int((resized or size) * _LEVIT))
    for larger in sides:
        if larger >= size and _agrees(processor, data, larger, place):
            data = dataclasses.replace(data, crop_fraction=size / larger)
            if (mode := _crop_mode(processor, data, larger, place)) is not None:
                return dataclasses.replace(data, crop_mode=mode)
    raise CheckpointError(
        f"{place}: {type(processor).__name__} prepares images in a way that no setting here expresses, such as another "
        "order of colours or a border; choose a different encoder."
    )


def _agrees(processor: Any, data: DataConfig, side: int, place: str) -> bool:
    """Whether a processor crops the centre of a square image with this side, in pixels, and normalises it like us."""
    levels = torch.randint(256, (len(data.mean), side, side), generator=torch.Generator().manual_seed(0))
    made = _prepared(processor, levels.byte(), place)
    pixels = normalise(levels[None] / 255, data.mean, data.std)
    edge, odd = divmod(side - data.image_size, 2)
    squares = (pixels[:, :, a : a + data.image_size, a : a + data.image_size] for a in {edge, edge + odd})
    return any(made.shape == square.shape and bool((made - square).abs().max() < _CLOSE) for square in squares)


def _crop_mode(processor: Any, data: DataConfig, side: int, place: str) -> CropMode | None:
    """How a processor makes an image square that is twice as wide as high; None if neither mode does the same.

    The image gets brighter from left to right, so that what is left of its sides shows, however it is interpolated.
    """
    levels = torch.linspace(0, 255, 2 * side).round().byte().expand(len(data.mean), side, -1).contiguous()
    made, std = _prepared(processor, levels, place), torch.tensor(data.std).view(1, -1, 1, 1)
    for mode in get_args(CropMode):
        ours = crop(levels, centre_box(data.crop_fraction, *levels.shape[1:], mode=mode), data.image_size)[None] / 255
        same = made.shape == ours.shape
        if same and ((made - normalise(ours, data.mean, data.std)) * std).abs().max() < _NEAR:
            return cast("CropMode", mode)
    return None


def _prepared(processor: Any, levels: Tensor, place: str) -> Tensor:
    """What a processor makes of an image, uint8 (c, h, w): (1, c, s, s)."""
    try:
        made: Tensor = processor(
            levels.numpy(), input_data_format="channels_first", return_tensors="pt"
        ).pixel_values  # fmt: skip
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise CheckpointError(f"{place}: {type(processor).__name__} fails on an image ({reason}).") from error
    return made
