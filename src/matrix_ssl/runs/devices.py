"""The device of a computation, its precision, and what is recorded about it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from matrix_ssl import distributed
from matrix_ssl.config import system
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs import environment as run_environment

# instructions that multiply bfloat16, as named by torch.cpu.get_capabilities, fastest first
_CPU_BFLOAT16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "ARM BF16"}
_IDLE = 0.75  # of a core for each thread: with less, threads are likely to wait for others
_ONEDNN_BLOCK = 16  # channels that its AVX-512 kernels process at once; 8 for AVX2


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA, then Apple's MPS, then the CPU. ConfigError if it is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device={name}: expected auto, cpu, cuda or mps.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU here; use --device cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: PyTorch sees no Apple GPU here; use --device cpu.")
    return torch.device("cuda", distributed.local_rank()) if name == "cuda" else torch.device(name)


def busy_remark(device: torch.device) -> str:
    """A warning if other programs leave fewer cores idle than this one is about to compute on.

    At each of the thousands of barriers in a step, all threads wait until the system has scheduled the last one.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return ""
    busy = system.busy_share()
    if (1 - busy) * system.machine_cores() >= _IDLE * threads:
        return ""
    return (
        f"Other programs use {busy:.0%} of the CPU. Computing on {threads} threads can then be many times slower than "
        "on one, which OMP_NUM_THREADS=1 selects."
    )


def device_name(device: torch.device) -> str:
    """The name of a GPU, or just the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of networks: ``auto`` is bfloat16 on a CUDA device that supports it, else float32.

    This rule is for evaluations. A pre-training follows ``training.setup.settle_precision`` from its start on.
    """
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and has_bfloat16(device) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether PyTorch multiplies bfloat16 with dedicated instructions of the device.

    Without them, or in a build without oneDNN such as the one for macOS, bfloat16 is slower than float32 on a CPU.
    """
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(bfloat16_instructions(device))


def bfloat16_instructions(device: torch.device) -> str:
    """The CPU's instructions that multiply bfloat16, which PyTorch uses through oneDNN; empty if there are none.

    They are AMX, AVX-512 BF16 and ARM's.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return ""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch has none
    return next((words for name, words in _CPU_BFLOAT16.items() if capabilities.get(name, False)), "")


def describe_precision(name: str, device: torch.device) -> str:
    """A precision in words; for bfloat16 on a CPU, with the instructions that multiply it."""
    if name != "bfloat16" or device.type != "cpu":
        return name
    return f"bfloat16 ({bfloat16_instructions(device) or 'without instructions for it, slower than float32'})"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and commit, to record with a result computed on the device."""
    return run_environment.environment(
        device=device.type,
        device_name=device_name(device),
        threads=torch.get_num_threads(),
        processes=distributed.world_size(),
    )


class Transfer:
    """Numbers on their way from a device to the host, which can continue until it needs them."""

    def __init__(self, values: Tensor):
        self._values, self._event = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))

    def numbers(self) -> list[Any]:
        """The elements of a vector, once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[Any] = self._values.tolist()
        return numbers


@dataclass(frozen=True)
class MixedPrecision:
    """The data types of the weights and of a forward under autocast; None: no autocast."""

    device: torch.device
    weights: torch.dtype
    forward: torch.dtype | None

    @classmethod
    def choose(cls, name: str, device: torch.device) -> "MixedPrecision":
        """The precision for a setting: auto, float32, bfloat16 (of the forward) or float64."""
        chosen = choose_precision(name, device)
        weights = torch.float64 if chosen == "float64" else torch.float32
        return cls(device, weights, torch.bfloat16 if chosen == "bfloat16" else None)

    def place(self, module: nn.Module) -> None:
        """Moves a module to the device and data type, with its convolutions channels-last: faster, on CPUs too.

        On a CPU, strided 1x1 convolutions of fewer than 16 channels, the shortcuts of narrow residual networks, stay
        channels-first. Otherwise oneDNN (3.14 and before, PyTorch 2.14) writes past the end of a buffer in the gradient
        of their weights, which means a crash or a wrong gradient (uxlfoundation/oneDNN, issue 6035).
        """
        module.to(self.device, self.weights)
        module.to(memory_format=torch.channels_last)
        for layer in module.modules() if self.device.type == "cpu" else ():
            if isinstance(layer, nn.Conv2d) and _is_narrow_and_strided(layer):
                layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)
                layer.register_forward_pre_hook(_channels_first)

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context of a forward."""
        if self.forward is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.forward)


def _is_narrow_and_strided(layer: nn.Conv2d) -> bool:
    narrow = layer.in_channels // layer.groups < _ONEDNN_BLOCK
    return narrow and layer.kernel_size == (1, 1) and layer.stride != (1, 1)


def _channels_first(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(), *inputs[1:])
