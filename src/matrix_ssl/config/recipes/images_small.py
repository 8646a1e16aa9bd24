"""Any folder of images, on a CPU: a network of 0.3M parameters at 64 pixels, minutes for ten thousand images.

The features are meant for exploring a collection and for few labels; for an encoder to build on, use ``images`` on a
GPU. The method is the one that came first in a comparison on equal terms (``docs/results/cifar10_16px.md``);
``--method matrix_ssl`` selects the paper's, here without a predictor: on held-out images of Imagenette, leaving it out
was worth five points of linear accuracy (``LOG.md``).
"""

from matrix_ssl.config import DataConfig, MethodConfig, NetworkConfig, OptimizerConfig, RunConfig
from matrix_ssl.config.views import asymmetric_views

OTHER_METHODS = {"teacher_momentum": 0.95, "predictor": False}


def recipe() -> RunConfig:
    views = asymmetric_views()
    return RunConfig(
        recipe="images_small",
        data=DataConfig(image_size=64, crop_fraction=1.0),
        views=views,
        network=NetworkConfig(encoder="tiny_resnet", width=16),
        method=MethodConfig("matrix_entropy", {"hidden_dim": 512, "output_dim": 256}),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.004, warmup_epochs=1),
        epochs=15,
        batch_size=128,
    )
