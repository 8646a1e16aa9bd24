"""A PyTorch encoder for the service, with the same features as ``matrix-ssl embed`` writes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from matrix_ssl.api.run import Run
from matrix_ssl.api.serve.served import Preparation, ServedEncoder
from matrix_ssl.config.untrusted import file_sha256
from matrix_ssl.data.files.decoding import decode_pixels
from matrix_ssl.data.files.squares import centre_box
from matrix_ssl.data.views.augment import crop, normalise
from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.identity import encoder_digest
from matrix_ssl.encoder.opening import open_encoder
from matrix_ssl.encoder.where import is_folder
from matrix_ssl.runs import devices
from matrix_ssl.runs.folder import ENCODER


class TorchEncoder(ServedEncoder):
    """The encoder WHERE.

    Args:
        where: an encoder in any form that ``encoder.where`` describes.
        weights: ``student``, or ``teacher``, its moving average.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        download: download published weights that are not in the local cache.

    Raises:
        MatrixSSLError: the encoder is missing or damaged, or takes images that no file can hold.
    """

    def __init__(
        self, where: str | Path, *, weights: Weights = "student", device: str = "auto", download: bool = False
    ):
        if is_folder(where):
            run = Run(where)
            config, encoder = run.config, run.encoder(weights=weights)
            self.sha256 = file_sha256(run.folder / ENCODER) if weights == "student" else None
        else:
            opened = open_encoder(where, weights=weights, download=download)
            config, encoder, self.sha256 = opened.config, opened.encoder, opened.sha256
        data = config.data
        self.name, self.weights = config.network.encoder, weights
        self.preparation = Preparation(
            data.image_size, data.crop_fraction, data.mean, data.std, data.reading, data.crop_mode
        )
        self.digest = self.identity = encoder_digest(encoder, data)
        self._device = devices.choose_device(device)
        self._encoder = encoder.eval().to(self._device)
        self._type = next((p.dtype for p in encoder.parameters()), torch.float32)
        self.runtime = f"PyTorch {torch.__version__} on {devices.device_name(self._device)}"
        self.width = self.features(self.zeros(1)).shape[1]

    def square(self, content: bytes, where: str) -> NDArray[Any]:
        """The square as ``matrix-ssl embed`` crops it."""
        prepared = self.preparation
        image = torch.from_numpy(decode_pixels(content, where, reading=prepared.reading))
        box = centre_box(prepared.crop_fraction, *image.shape[-2:], mode=prepared.crop_mode)
        return crop(image, box, prepared.image_size).numpy()

    @torch.no_grad()
    def features(self, squares: NDArray[Any]) -> NDArray[np.float32]:
        """The features as ``matrix-ssl embed`` computes them."""
        pixels = torch.from_numpy(squares).to(self._device)
        unit = pixels if pixels.is_floating_point() else pixels.float() / 255
        prepared = normalise(unit, self.preparation.mean, self.preparation.std)
        return self._encoder(prepared.to(self._type)).float().cpu().numpy()
