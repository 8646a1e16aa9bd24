"""Pre-training and evaluation as Python functions that raise this package's errors and never exit the process.

``matrix_ssl`` exports ``pretrain``, ``open``, ``Run``, ``Collection`` and ``EncoderTransformer`` and loads them on
first use.
"""
