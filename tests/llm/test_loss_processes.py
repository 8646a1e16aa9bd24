"""The language-model loss of two real processes over gloo, under DistributedDataParallel, is that of one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from matrix_ssl import distributed
from tests.support import llm_samples
from tests.support.runs import start_processes

ROOT = str(Path(__file__).parents[2])
FORMS = ({"form": "closed"}, {"form": "lanczos", "steps": 2}, {"form": "top", "top": 3}, {"form": "dense"})
LENGTH = 7


class Model(nn.Module):
    """Tokens in, the loss out: the head is used inside, so that its gradient is averaged, too."""

    def __init__(self, vocabulary: int, d: int):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(vocabulary, d), nn.Linear(d, d)
        self.head = nn.Linear(d, vocabulary, bias=False)

    def forward(self, labels: Tensor, count: int, form: dict, *, fused: bool) -> Tensor:
        hidden = torch.tanh(self.layer(self.embedding(labels.clamp_min(0))))
        if fused:
            return llm_samples.loss(hidden, self.head.weight, labels, num_items_in_batch=count, **form)
        logits = self.head(hidden)
        return llm_samples.loss_from_logits(logits, self.head.weight, labels, num_items_in_batch=count, **form)


def check() -> None:
    """What each of the processes does: uneven parts, of which the last counts few labels."""
    distributed.start("cpu")
    size, rank = distributed.world_size(), distributed.rank()
    assert size == 2
    sizes = [1 + 2 * i for i in range(size)]
    labels = llm_samples.sample(batch=sum(sizes), length=LENGTH)[2]
    labels[-2:, 3:] = llm_samples.IGNORED
    count = int((labels[:, 1:] != llm_samples.IGNORED).sum())
    for form in FORMS:
        for fused in (True, False):
            torch.manual_seed(0)
            single, ours = Model(11, 5).double(), Model(11, 5).double()
            ours.load_state_dict(single.state_dict())
            wrapped = distributed.wrap(ours)
            expected = single(labels, count, form, fused=fused)
            expected.backward()
            found = wrapped(labels.split(sizes)[rank], count, form, fused=fused)
            (found * size).backward()  # DistributedDataParallel averages, and the sum is wanted
            total = distributed.all_reduce_sum(found.detach())
            torch.testing.assert_close(total, expected.detach(), rtol=1e-12, atol=0)
            for name, parameter in single.named_parameters():
                gradient = ours.get_parameter(name).grad
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-14, msg=f"{form} {name}")
    distributed.stop()


@pytest.mark.parametrize("count", [2])
def test_together_they_compute_what_one_process_computes(tmp_path: Path, count: int) -> None:
    code = f"import sys; sys.path.insert(0, {ROOT!r}); import tests.llm.test_loss_processes as t; t.check()"
    for command in start_processes(tmp_path, [], count=count, before=f"{code}; raise SystemExit(0)"):
        ended = command.wait()
        assert ended.code == 0, ended.err
