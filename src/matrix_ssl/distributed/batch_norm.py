"""BatchNorm with the statistics of the batch of all processes, also on CPUs."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from matrix_ssl import distributed


def synchronise_batch_norm(module: nn.Module, device_type: str) -> nn.Module:
    """Makes every BatchNorm use the statistics of the batch of all processes; does nothing in a single process.

    On CUDA this is PyTorch's SyncBatchNorm, which does not run on the CPU; there it is ``SynchronisedBatchNorm``. Names
    and values of parameters and buffers do not change.
    """
    if distributed.world_size() == 1:
        return module
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm):
        return SynchronisedBatchNorm.like(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child, device_type))
    return module


class SynchronisedBatchNorm(_BatchNorm):
    """BatchNorm over (n, c) or (n, c, h, w) whose training statistics are those of all processes together.

    Half precision is computed in float32, as PyTorch's own layers do, and the output has the dtype of the input.
    """

    @classmethod
    def like(cls, other: _BatchNorm) -> "SynchronisedBatchNorm":
        """A layer that shares the parameters, buffers and settings of ``other``."""
        new = cls(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        new._parameters, new._buffers, new.training = other._parameters, other._buffers, other.training
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"Expected a batch of shape (n, c, ...), got {tuple(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (n, c, ...); in eval mode exactly ``torch.nn.BatchNorm``."""
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        # processes may have different numbers of rows, so the number of values is summed with the values
        x = input if input.dtype in (torch.float32, torch.float64) else input.float()
        local = x.new_full((1,), x.numel() // x.shape[1])
        total = distributed.all_reduce_sum(torch.cat([x.sum(axes), local]))
        count = total[-1].detach()
        # two passes: the mean of squares about the mean keeps all digits, E[x²] - E[x]² does not
        mean = total[:-1] / count
        centred = x - mean.view(shape)
        variance = distributed.all_reduce_sum(centred.square().sum(axes)) / count
        self._follow(mean.detach(), variance.detach() * (count / (count - 1).clamp_min(1)))
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(variance.to(self.running_var.dtype), rate)
