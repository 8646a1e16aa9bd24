"""Triton's kernels of the closed form, interpreted on the CPU, against PyTorch's operations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = """
import torch
from matrix_ssl.llm import Objective, matrix_cross_entropy_terms
from matrix_ssl.llm.loss import passes, positions, triton_kernels

triton_kernels._BLOCK = 32  # several blocks, of which the last is not whole
def both(hidden, head, labels, **options):
    found = []
    for kernels in (False, True):
        passes.uses_kernels = lambda z, objective, kernels=kernels: kernels
        h, w = (x.clone().requires_grad_() for x in (hidden, head))
        terms = matrix_cross_entropy_terms(h, w, labels, **options)
        found.append((*(x.detach() for x in terms), *torch.autograd.grad(terms.loss, (h, w))))
    return found

generator = torch.Generator().manual_seed(0)
for vocabulary, d, length, dtype, kind, looks in (
    (7, 3, 4, torch.float32, {}, True), (77, 5, 9, torch.float32, {"softcap": 2.0, "logit_scale": 0.5}, True),
    (131, 8, 6, torch.bfloat16, {"bias": True}, True), (96, 8, 6, torch.float32, {}, False),
):
    head = (torch.randn(vocabulary, d, generator=generator) + 0.3).to(dtype)
    head[3] = 0  # no direction
    hidden = 2 * torch.randn(2, length, d, generator=generator).to(dtype)
    labels = torch.randint(vocabulary, (2, length), generator=generator)
    labels[0, 2], labels[1, 1] = -100, 3
    if kind.get("bias"):
        kind["bias"] = torch.randn(vocabulary, generator=generator)
    positions.looks_at_values = lambda x, validate, looks=looks: looks  # without: what a GPU does with -100
    passes.looks_at_values = lambda x, validate, looks=looks: looks
    for objective in (Objective(chunk=4), Objective(weight=0.3, ridge=0.1), Objective(weight=0.0)):
        plain, kernels = both(hidden, head, labels, objective=objective, **kind)
        units = 1e-2 if dtype == torch.bfloat16 else 1e-5  # gradients are rounded to the dtype at the end
        for name, ours, theirs in zip(("loss", "ce", "mce", "entropy", "accuracy", "hidden", "head"), kernels, plain):
            torch.testing.assert_close(ours, theirs, rtol=units, atol=1e-6, msg=lambda m: f"{name} {vocabulary} {m}")
logits = torch.randn(3, 40, generator=generator)
logits[0, :35], logits[1, 35:], logits[2, 5] = -torch.inf, -torch.inf, 400.0
values = triton_kernels.closed_form(logits.clone(), torch.zeros(3, 40), torch.tensor([38, 2, 5]), torch.ones(3),
                                    weight=1.0, ridge=0.01, with_gradient=True)
expected = torch.nn.functional.cross_entropy(logits, torch.tensor([38, 2, 5]), reduction="none")
torch.testing.assert_close(values[:, 0], expected)
assert values.isfinite().all()
print("done")
"""


def test_kernels_compute_what_pytorch_does():
    """In a process of its own: Triton decides on its interpreter when it is imported."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-3000:]
