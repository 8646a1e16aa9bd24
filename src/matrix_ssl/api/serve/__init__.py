"""Serves an encoder over HTTP: features of images and their nearest neighbours (extra ``serve``).

``create_app`` returns an application for any ASGI server, ``open_served`` the encoder for it, and ``open_index`` the
features to search. An encoder in an ONNX file does not need torch: only ``torch_encoder`` in this folder imports it.
"""

from typing import TYPE_CHECKING

from matrix_ssl.errors import load_on_use

if TYPE_CHECKING:
    from matrix_ssl.api.serve.app import create_app
    from matrix_ssl.api.serve.opening import open_index, open_served
    from matrix_ssl.api.serve.settings import ServeSettings

__all__ = ["ServeSettings", "create_app", "open_index", "open_served"]

__getattr__ = load_on_use(
    __name__, __all__,
    ("matrix_ssl.api.serve.settings", "matrix_ssl.api.serve.opening", "matrix_ssl.api.serve.app"),
)  # fmt: skip
