"""Opens the encoder and the index of a service by where they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matrix_ssl.api.serve.index import Index, index_folders, read_index
from matrix_ssl.api.serve.served import ServedEncoder
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs.display import Display

ONNX = ".onnx"


def open_served(
    where: str | Path, *, weights: Any = "student", device: str = "auto", download: bool = False
) -> ServedEncoder:
    """Opens the encoder WHERE, ready for requests.

    Args:
        where: an ONNX file that ``matrix-ssl export`` wrote, which needs no torch; or a run folder, a checkpoint file,
            ``torchvision/NAME[:WEIGHTS]``, ``timm/NAME[.TAG]``, ``hf:NAME`` or ``random/NAME``.
        weights: ``student``, or ``teacher``, its moving average; an ONNX file holds one of them.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``; an ONNX file runs on the CPU unless this is ``cuda``.
        download: download published weights that are not in the local cache.

    Raises:
        MatrixSSLError: the encoder is missing or damaged, or takes images that no file can hold.
    """
    path = expanded(where)
    if path.suffix.lower() == ONNX and not path.is_dir():
        from matrix_ssl.api.serve.onnx_encoder import OnnxEncoder

        encoder: ServedEncoder = OnnxEncoder(path, device=device)
        if weights not in ("student", encoder.weights):
            raise ConfigError(f"{path} holds the {encoder.weights}: export it again with --weights {weights}.")
        return encoder
    from matrix_ssl.api.serve.torch_encoder import TorchEncoder

    return TorchEncoder(where, weights=weights, device=device, download=download)


def open_index(
    encoder: ServedEncoder, features: str | Path | None = None, *,
    data: str | Path | Sequence[str | Path] | None = None, quiet: bool = False,
) -> Index:  # fmt: skip
    """Opens the index of images to search.

    Args:
        encoder: the encoder of the service.
        features: a feature file that ``matrix-ssl embed`` wrote; formats other than .npz need PyTorch.
        data: folders of images, in place of ``features``. Their features are kept in ``features_cache``: only new and
            changed images are embedded now.
        quiet: show no progress.

    Raises:
        MatrixSSLError: the file or the images are at fault, or the features are from a different encoder.
    """
    if (features is None) == (not data):
        raise ConfigError("Give either a feature file or folders of images to search in.")
    if features is not None:
        index = _read(expanded(features))
    else:
        folders = [expanded(one) for one in ([data] if isinstance(data, (str, Path)) else data or ())]
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(
                    f"--data {folder} is not a folder of images: write its features with matrix-ssl embed and "
                    "name them with --index."
                )
        index = index_folders(encoder, folders, display=Display(quiet=quiet))
    index.check(encoder)
    return index


def _read(path: Path) -> Index:
    if path.suffix.lower() == ".npz":
        return read_index(path)
    from matrix_ssl.evaluate.embedding_files import read_embedding

    embedding = read_embedding(path)
    names = embedding.classes or []
    labels = None if embedding.labels is None else [names[label] for label in embedding.labels]
    return Index(embedding.features, embedding.paths, labels=labels, digest=embedding.encoder_digest, name=path.name)
