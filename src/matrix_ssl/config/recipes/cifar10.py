"""CIFAR-10: ResNet-18 with the small stem at 32 pixels, 200 epochs on one GPU.

    matrix-ssl pretrain cifar10 --data-root DATA --download

On a CPU, use ``cifar10_small``. ``--method matrix_ssl`` selects the paper's method.
"""

import dataclasses

from matrix_ssl.config import DataConfig, MethodConfig, NetworkConfig, OptimizerConfig, RunConfig
from matrix_ssl.config.views import asymmetric_views

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

OTHER_METHODS = {"teacher_momentum": 0.99}


def recipe() -> RunConfig:
    views = tuple(dataclasses.replace(view, blur=0.0) for view in asymmetric_views())  # blur destroys 32 pixels
    return RunConfig(
        recipe="cifar10",
        data=DataConfig(source="cifar10", image_size=32, mean=MEAN, std=STD, crop_fraction=1.0),
        views=views,
        network=NetworkConfig(encoder="resnet18", stem="small"),
        method=MethodConfig("matrix_entropy", {"hidden_dim": 512, "output_dim": 256}),
        optimizer=OptimizerConfig(learning_rate=0.3, warmup_epochs=5),
        epochs=200,
        batch_size=256,
    )
