"""Any folder of images, on a GPU.

ResNet-18 at 96 pixels, small enough to train in minutes on one GPU and in hours on a CPU; with more compute, raise
``data.image_size`` and choose ``network.encoder=resnet50``. Views: the two asymmetric ones of MoCo v3 (Chen, Xie and
He, ICCV 2021). The method is the one that came first in a comparison on equal terms, on small images and a CPU
(``docs/results/cifar10_16px.md``); ``--method matrix_ssl`` selects the paper's.
"""

from matrix_ssl.config import DataConfig, MethodConfig, OptimizerConfig, RunConfig
from matrix_ssl.config.views import asymmetric_views

OTHER_METHODS = {"teacher_momentum": 0.99}


def recipe() -> RunConfig:
    views = asymmetric_views()
    return RunConfig(
        recipe="images",
        data=DataConfig(image_size=96),
        views=views,
        method=MethodConfig("matrix_entropy", {"hidden_dim": 1024, "output_dim": 512}),
        optimizer=OptimizerConfig(learning_rate=0.3, warmup_epochs=5),
        epochs=100,
        batch_size=256,
    )
