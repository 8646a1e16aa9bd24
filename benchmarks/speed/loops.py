"""Three loops of training on the same images and networks, each an iterator of steps: ours, lightly's, published.

``lightly`` is the loop of its documentation for BYOL: its transform, heads, loss and moving average, PyTorch's loader.
``published`` is that of Matrix-SSL as it was published: torchvision's transforms on PIL images, the dense loss of
``published.py`` with automatic differentiation, a moving average parameter by parameter. All see two views by the
policy of BYOL and train the same encoder with the same widths of the heads by SGD with momentum.
"""

import copy
import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.speed import published
from benchmarks.speed.pil_views import Images, published_views
from matrix_ssl import config, networks
from matrix_ssl.data.base import MemorySource, Places, Source
from matrix_ssl.data.sources import open_source
from matrix_ssl.runs.display import Display
from matrix_ssl.training import setup
from matrix_ssl.training.engine import Engine

Steps = Iterator[None]
Method = Literal["matrix_ssl", "byol"]


@dataclasses.dataclass(frozen=True)
class Case:
    """What all loops of a comparison share.

    Attributes:
        encoder: as ``network.encoder`` of the settings.
        side: of the views, in pixels.
        batch, hidden, output: images of a step, and widths of the heads.
        workers: processes that read files; images in memory are read by the loop itself.
    """

    encoder: str
    side: int
    batch: int
    hidden: int = 512
    output: int = 256
    workers: int = 0
    width: int = 32  # of tiny_resnet

    def build(self) -> tuple[nn.Module, int]:
        """The encoder and the width of its features."""
        torch.manual_seed(0)
        return networks.build_encoder(self.encoder, channels=3, image_size=self.side, width=self.width)


def ours(
    case: Case,
    images: Tensor | Path,
    *,
    device: torch.device,
    method: Method = "matrix_ssl",
    settings: Sequence[str] = (),
) -> Steps:
    """Steps of this package on images uint8 (m, 3, h, w) or a folder of files; nothing is logged or saved."""
    if isinstance(images, Path):
        source: Source = open_source(str(images), split="train", data_root=None)
    else:
        source = MemorySource(
            "benchmark", images, Places.whole(["benchmark"], [len(images)]), labels=None, classes=None
        )
    view1, view2 = config.asymmetric_views(smallest_crop=0.08)
    base = config.RunConfig(
        recipe="benchmark",
        data=config.DataConfig(source="benchmark", image_size=case.side, workers=case.workers),
        views=(view1, view2),
        network=config.NetworkConfig(encoder=case.encoder, width=case.width),
        method=config.MethodConfig(method, {"hidden_dim": case.hidden, "output_dim": case.output}),
        optimizer=config.OptimizerConfig(name="sgd", learning_rate=0.06, warmup_epochs=0),
        epochs=10**6,
        batch_size=case.batch,
    )
    run = setup.complete(config.override(base, list(settings)))
    task = setup.prepare(run, source=source, device=device, display=Display(quiet=True))
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(task, Path(folder))
        task.train_mode()
        for batch in engine.read(0, task.plan.total_steps):
            if engine.update(batch) is None:
                raise SystemExit("A step was not finite.")
            task.step += 1
            yield


def lightly(
    case: Case, images: Sequence[Any], *, device: torch.device, precision: str = "float32", one_batch: bool = False
) -> Steps:
    """Steps of lightly's documented loop for BYOL; ``one_batch``: all on the views of one batch, made once."""
    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=case.side),
        view_2_transform=BYOLView2Transform(input_size=case.side),
    )
    backbone, width = case.build()
    student = nn.ModuleList([backbone, BYOLProjectionHead(width, case.hidden, case.output)]).to(device)
    predictor = BYOLPredictionHead(case.output, case.hidden, case.output).to(device)
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD([*student.parameters(), *predictor.parameters()], lr=0.06, momentum=0.9)
    batches = _endless(Images(images, transform), case, device)
    for x0, x1 in itertools.repeat(next(batches)) if one_batch else batches:
        for mine, theirs in zip(student, teacher, strict=True):
            update_momentum(mine, theirs, m=0.996)
        with _autocast(device, precision):
            p0, p1 = (predictor(student[1](student[0](x).flatten(start_dim=1))) for x in (x0, x1))
            with torch.no_grad():
                z0, z1 = (teacher[1](teacher[0](x).flatten(start_dim=1)) for x in (x0, x1))
            loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def published_loop(case: Case, images: Sequence[Any], *, device: torch.device, precision: str = "float32") -> Steps:
    """Steps of the published loop of Matrix-SSL, rewritten."""
    backbone, width = case.build()
    student = nn.Sequential(backbone, networks.projector(width, case.hidden, case.output)).to(device)
    predictor = networks.predictor(case.output).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.SGD([*student.parameters(), *predictor.parameters()], lr=0.06, momentum=0.9)
    for x1, x2 in _endless(Images(images, published_views(case.side)), case, device):
        with _autocast(device, precision):
            z1, z2 = predictor(student(x1)), predictor(student(x2))
            with torch.no_grad():
                p1, p2 = teacher(x1), teacher(x2)
        loss = published.loss(z1.float(), z2.float(), p1.float(), p2.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                theirs.data = theirs.data * 0.996 + mine.data * 0.004
        yield


def _endless(dataset: Images, case: Case, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of views of batch after batch, as PyTorch's loader gives them."""
    loader = DataLoader(
        dataset, batch_size=case.batch, shuffle=True, drop_last=True, num_workers=case.workers,
        persistent_workers=case.workers > 0, pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if case.workers else None,
    )  # fmt: skip
    while True:
        for views in loader:
            yield views[0].to(device, non_blocking=True), views[1].to(device, non_blocking=True)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
