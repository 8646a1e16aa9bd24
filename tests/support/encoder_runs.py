"""Run folders with an encoder and a teacher that have moved, made without a training."""

import torch

from matrix_ssl.config import RunConfig, override, to_dict
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.methods.matrix_ssl import MatrixSSL
from matrix_ssl.runs.checkpoint import Checkpoint, save_checkpoint, save_weights
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import CONFIG, ENCODER


def make_run(folder, *settings, base=None):
    """A run folder after a few updates of networks and teacher, without the training."""
    folder.mkdir()
    config = override(base or RunConfig(), settings)
    encoder, width = initialise_encoder(config)
    method = MatrixSSL(encoder, width, hidden_dim=8, output_dim=4, teacher_momentum=0.5)
    channels, size = len(config.data.mean), config.data.image_size
    for step in range(2):
        method(*torch.randn(2, 4, channels, size, size, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            for p in method.encoder.parameters():
                p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        method.after_step(0.5)
    write_json(folder / CONFIG, to_dict(config))
    save_weights(folder / ENCODER, method.encoder, {"weights": "student"})
    save_checkpoint(folder, Checkpoint(2, method.state_dict(), {"state": {}, "param_groups": []}, {}))
    return folder, method.eval()
