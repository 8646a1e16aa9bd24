"""Handwritten digits of 8x8 pixels on two CPU cores in under two minutes.

Data: scikit-learn's built-in ``load_digits``. Views: small affine and elastic deformations, gamma and noise; a flip or
a crop would turn one digit into another.
"""

from matrix_ssl.config import DataConfig, MethodConfig, NetworkConfig, OptimizerConfig, RunConfig, ViewConfig


def recipe() -> RunConfig:
    view = ViewConfig(rotation=15.0, zoom=0.15, shear=0.2, translation=0.1, elastic=0.4, gamma=0.4, noise=0.05)
    return RunConfig(
        recipe="demo",
        data=DataConfig(source="digits", image_size=8, mean=(0.305,), std=(0.376,), crop_fraction=1.0, workers=0),
        views=(view, view),
        network=NetworkConfig(encoder="tiny_resnet", width=32),
        method=MethodConfig("matrix_ssl", {"hidden_dim": 256, "output_dim": 128, "teacher_momentum": 0.9}),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.005, warmup_epochs=5),
        epochs=80,
        batch_size=256,
        checkpoint_every=50,
    )
