"""Pre-training and evaluation as functions of Python, which raise this package's errors and never exit the process.

``matrix_ssl`` offers ``pretrain``, ``open``, ``Run``, ``Collection`` and ``EncoderTransformer``, and loads them when
they are used.
"""
