"""The paper's pre-training: ResNet-50 on ImageNet, 100 epochs; 200 or 400 with ``--set epochs=200``.

    torchrun --nproc-per-node 8 -m matrix_ssl pretrain imagenet --data /path/to/imagenet

The folder holds ``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG``. Batch 1024 over 8 GPUs, SGD with momentum 0.9, weight
decay 1e-5, learning rate 0.5 per 256 images, 10 epochs of warm-up, then cosine; the two views of MoCo v3; outputs of
width 2048. Linear accuracy by the authors, neither verified nor reproduced here: 71.1 / 72.3 / 73.6 % after 100 / 200 /
400 epochs.

The published objective itself is
``--set method.logarithm=taylor --set method.ridge=0.5 --set method.uniformity_weight=0.5`` (its script; 1 and 1 in its
README).

``--method NAME`` trains another method with the values of ITS paper, which are in the method's file.

Paper: Zhang, Tan, Yang, Huang and Yuan, "Matrix Information Theory for Self-Supervised Learning", ICML 2024.
"""

from matrix_ssl.config import DataConfig, MethodConfig, NetworkConfig, OptimizerConfig, RunConfig
from matrix_ssl.config.views import asymmetric_views

FOLLOWS_PAPERS = True  # --method NAME takes the values of that method's paper


def recipe() -> RunConfig:
    views = asymmetric_views()
    return RunConfig(
        recipe="imagenet",
        data=DataConfig(image_size=224),
        views=views,
        network=NetworkConfig(encoder="resnet50"),
        method=MethodConfig("matrix_ssl", {"hidden_dim": 2048, "output_dim": 2048, "teacher_momentum": 0.996}),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.5, momentum=0.9, weight_decay=1e-5, warmup_epochs=10),
        epochs=100,
        batch_size=1024,
    )
