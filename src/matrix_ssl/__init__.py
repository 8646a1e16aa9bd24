"""Matrix-information self-supervised learning on PyTorch.

Importing the package does no work and loads no torch; import what you need from its modules, for example
``from matrix_ssl.losses import matrix_ssl_loss``.
"""

__version__ = "0.1.0"
