"""Any folder of images, on a CPU: a network of 0.3M parameters at 64 pixels, minutes for ten thousand images.

The features serve for looking at a collection and for few labels; for an encoder to build on, use ``images`` on a
GPU. There is no predictor: on held-out images of Imagenette its absence was worth five points of linear accuracy
(``LOG.md``).
"""

from matrix_ssl.config import DataConfig, MethodConfig, NetworkConfig, OptimizerConfig, RunConfig
from matrix_ssl.config.views import asymmetric_views


def recipe() -> RunConfig:
    views = asymmetric_views()
    return RunConfig(
        recipe="images_small",
        data=DataConfig(image_size=64, crop_fraction=1.0),
        views=views,
        network=NetworkConfig(encoder="tiny_resnet", width=16),
        method=MethodConfig(
            "matrix_ssl", {"hidden_dim": 512, "output_dim": 256, "teacher_momentum": 0.95, "predictor": False}
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.004, warmup_epochs=1),
        epochs=15,
        batch_size=128,
    )
