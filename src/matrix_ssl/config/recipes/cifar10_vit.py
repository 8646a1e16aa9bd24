"""CIFAR-10 for a CPU with a vision transformer: masked modelling (MAE) of 10,000 images in patches of 4 pixels.

    matrix-ssl pretrain cifar10_vit --data-root DATA

The encoder, timm's tiny vision transformer with 64 patches per image, has 5.4M parameters and sees a quarter of them.
One view: a crop and a flip, as in the paper. Learning rate, weight decay and decoder are not tuned.
"""

import dataclasses

from matrix_ssl.config import MethodConfig, NetworkConfig, OptimizerConfig, RunConfig, ViewConfig
from matrix_ssl.config.recipes import cifar10


def recipe() -> RunConfig:
    base = cifar10.recipe()
    return dataclasses.replace(
        base,
        recipe="cifar10_vit",
        data=dataclasses.replace(base.data, subset=10_000),
        views=(ViewConfig(crop_scale=(0.2, 1.0), flip=0.5),),
        network=NetworkConfig(encoder="timm/vit_tiny_patch16_224", patch_size=4),
        method=MethodConfig("mae", {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 3}),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.001, weight_decay=0.05, warmup_epochs=2),
        epochs=20,
    )
