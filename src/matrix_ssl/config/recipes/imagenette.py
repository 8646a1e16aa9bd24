"""Imagenette: ResNet-18 at 128 pixels, 200 epochs on one GPU.

    matrix-ssl pretrain imagenette --data FOLDER

FOLDER holds ``train/CLASS/*`` and ``val/CLASS/*``, or packed .npz files. ``--method matrix_ssl`` selects the
paper's method.
"""

from matrix_ssl.config import DataConfig, MethodConfig, NetworkConfig, OptimizerConfig, RunConfig
from matrix_ssl.config.views import asymmetric_views

OTHER_METHODS = {"teacher_momentum": 0.99}


def recipe() -> RunConfig:
    views = asymmetric_views()
    return RunConfig(
        recipe="imagenette",
        data=DataConfig(source="imagenette128", image_size=128, crop_fraction=1.0),
        views=views,
        network=NetworkConfig(encoder="resnet18", stem="standard"),
        method=MethodConfig("matrix_entropy", {"hidden_dim": 1024, "output_dim": 512}),
        optimizer=OptimizerConfig(learning_rate=0.3, warmup_epochs=5),
        epochs=200,
        batch_size=256,
    )
