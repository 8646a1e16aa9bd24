"""CIFAR-10 for a CPU: 10,000 images, a residual network of 0.7M parameters, 12 epochs.

    matrix-ssl compare cifar10_small --data-root DATA

A run takes twelve minutes on one core with AVX-512 BF16, and about twice as long without it. Widths and teacher
momentum are those of ``images_small``; the learning rate is the one that most methods preferred on held-out images
(``LOG.md``).
"""

import dataclasses

from matrix_ssl.config import MethodConfig, NetworkConfig, OptimizerConfig, RunConfig
from matrix_ssl.config.recipes import cifar10

OTHER_METHODS = {"teacher_momentum": 0.95}


def recipe() -> RunConfig:
    base = cifar10.recipe()
    return dataclasses.replace(
        base,
        recipe="cifar10_small",
        data=dataclasses.replace(base.data, subset=10_000),
        network=NetworkConfig(encoder="tiny_resnet", width=24),
        method=MethodConfig("matrix_entropy", {"hidden_dim": 512, "output_dim": 256}),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.004, warmup_epochs=1),
        epochs=12,
    )
