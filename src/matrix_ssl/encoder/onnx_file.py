"""ONNX: the encoder and the normalisation of its images as a single graph that needs no Python."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from matrix_ssl.config import DataConfig
from matrix_ssl.data.views.augment import normalise
from matrix_ssl.encoder.formats import Exported, Model, check_features
from matrix_ssl.encoder.identity import encoder_digest
from matrix_ssl.errors import CheckpointError, import_extra

_BATCHES = (1, 3)  # batch sizes for checking the graph, which is traced with 2


class FromPixels(nn.Module):
    """An encoder preceded by the normalisation of its images: pixels (n, c, s, s) in [0, 1] to features (n, k)."""

    def __init__(self, encoder: nn.Module, data: DataConfig):
        super().__init__()
        self.encoder, self.mean, self.std = encoder, data.mean, data.std

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels (n, c, s, s) to features (n, k)."""
        return self.encoder(normalise(pixels, self.mean, self.std))


def write_onnx(model: Model, folder: Path, name: str) -> Exported:
    """One ONNX file from ``pixels`` (n, c, s, s), float32 in [0, 1], to ``features`` (n, k), for any n.

    The normalisation is part of the graph, because pixels normalised twice, or not at all, are a common mistake.
    """
    for package in ("onnx", "onnxscript"):
        import_extra(package, extra="onnx")
    data = model.config.data
    network = FromPixels(model.encoder, data).eval()
    shape = (len(data.mean), data.image_size, data.image_size)
    generator = torch.Generator().manual_seed(0)
    try:
        program = torch.onnx.export(
            network, (torch.rand(2, *shape, generator=generator),),
            dynamo=True, verbose=False, input_names=["pixels"], output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{model.name} cannot be written as ONNX ({reason}); use --format safetensors."
        ) from error
    assert program is not None
    program.model.metadata_props.update(model.metadata | {"encoder_digest": encoder_digest(model.encoder, data)})
    program.save(folder / name)
    checked = f"ONNX graph of {model.name} ({model.metadata['weights']})"
    code = "\n".join([
        "import onnxruntime", "",
        f"session = onnxruntime.InferenceSession({name!r})",
        f"(features,) = session.run(None, {{'pixels': pixels}})  # float32 (n, {', '.join(map(str, shape))}) in [0, 1]",
    ])  # fmt: skip
    if importlib.util.find_spec("onnxruntime") is None:
        return Exported(name, f"{checked}, not compared with PyTorch: onnxruntime is not installed", code, "onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
    worst = 0.0
    for n in _BATCHES:
        pixels = torch.rand(n, *shape, generator=generator)
        (features,) = session.run(None, {"pixels": pixels.numpy()})
        with torch.no_grad():
            worst = max(worst, check_features(torch.from_numpy(features), network(pixels), "onnxruntime"))
    return Exported(name, f"{checked}, features in onnxruntime as in PyTorch within {worst:.0e}", code, "onnx")
