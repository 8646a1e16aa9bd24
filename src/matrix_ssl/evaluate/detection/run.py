"""A detection run from images to result: prepare, claim the folder, train, score, write."""

import dataclasses
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matrix_ssl import distributed
from matrix_ssl.data.unreadable import skipped
from matrix_ssl.distributed import batch_norm
from matrix_ssl.encoder import Weights
from matrix_ssl.evaluate.detection.annotations import (
    COUNTED,
    Annotations,
    check_objects,
    check_same_categories,
    read_annotations,
)
from matrix_ssl.evaluate.detection.files import ImageFiles
from matrix_ssl.evaluate.detection.gallery import write_gallery
from matrix_ssl.evaluate.detection.images import TrainingImages
from matrix_ssl.evaluate.detection.network import Backbone, build_detector, open_backbone
from matrix_ssl.evaluate.detection.predict import DetectionResults, predict
from matrix_ssl.evaluate.detection.scoring import score
from matrix_ssl.evaluate.detection.settings import LATER, DetectionSettings, Plan, check_processes, make_plan
from matrix_ssl.evaluate.detection.shapes import coco_masks
from matrix_ssl.evaluate.detection.training import DetectorTraining
from matrix_ssl.runs import checkpoint, devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_json, read_lines, write_json, write_lines, write_text
from matrix_ssl.runs.folder import ENVIRONMENT, SKIPPED
from matrix_ssl.training.engine import Engine, check_unreadable

RESULT, PREDICTIONS, DETECTOR, GALLERY = "result.json", "predictions.json", "detector.safetensors", "detections.png"
VAL_SKIPPED = "skipped-val.jsonl"


@dataclass(frozen=True)
class Inputs:
    """The locations of images, annotations and encoder."""

    train_images: Path
    train_annotations: Path
    val_images: Path
    val_annotations: Path
    encoder: str  # as in ``open_backbone``
    backbone: str | None = None  # architecture of the encoder
    weights: Weights = "student"
    download: bool = False  # download published weights that are not in the local cache


@dataclass(frozen=True)
class Prepared:
    """All inputs of a run, checked and built, before anything is written."""

    inputs: Inputs
    settings: DetectionSettings
    device: torch.device
    plan: Plan
    train: Annotations
    val: Annotations
    images: TrainingImages
    train_files: ImageFiles
    val_files: ImageFiles
    backbone: Backbone
    detector: nn.Module

    def headline(self) -> str:
        """One line about the run: network, encoder, data, length and device."""
        s, processes = self.settings, distributed.world_size()
        encoder, where = self.backbone.text.removesuffix("."), devices.device_name(self.device)
        return (
            f"{'Mask' if s.masks else 'Faster'} R-CNN {s.architecture} on {encoder}; "
            f"{len(self.images)} training images, {len(self.val.images)} validation images; "
            f"{self.plan.total} iterations of batch {s.batch_size}, seed {s.seed}; "
            f"{where}, {processes} process{'es' if processes > 1 else ''}"
        )

    def remarks(self) -> list[str]:
        """Sentences about the annotations that are left out."""
        texts = []
        for one in (self.train, self.val):
            if one.unused:
                texts.append(f"{one.path}: the category {one.unused[0]!r} has no objects and is not a class here.")
            if lost := one.counts["empty_masks"]:
                texts.append(f"{one.path}: {lost} {COUNTED['empty_masks']}; --no-masks uses boxes alone.")
        return texts

    @cached_property
    def data(self) -> dict[str, dict[str, str]]:
        """For each split, digests of the annotations and of the images that they list."""
        splits = {"train": (self.train, self.train_files), "val": (self.val, self.val_files)}
        return {
            name: {
                "annotations_sha256": annotations.sha256,
                "images_digest": files.digest([image.name for image in annotations.images]),
            }
            for name, (annotations, files) in splits.items()
        }

    def description(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return {
            "settings": {  # runs of earlier versions lack some keys
                key: value
                for key, value in dataclasses.asdict(self.settings).items()
                if key not in LATER or value != LATER[key]
            },
            **self.data,
            "encoder": {"architecture": self.backbone.architecture, "sha256": self.backbone.sha256,
                        "mean": list(self.backbone.mean), "std": list(self.backbone.std)},
            "places": {key: None if value is None else str(value)
                       for key, value in dataclasses.asdict(self.inputs).items()},
        }  # fmt: skip


def prepare(inputs: Inputs, settings: DetectionSettings, *, device: torch.device) -> Prepared:
    """Reads and checks the annotations, opens the encoder and builds the detector."""
    check_processes(settings, distributed.world_size())
    coco_masks()  # fails at once if pycocotools is missing
    places = (inputs.train_annotations, inputs.val_annotations)
    train, val = (read_annotations(place, masks=settings.masks) for place in places)
    check_same_categories(train, val)
    check_objects(train, "to learn")
    check_objects(val, "to score")
    train_files, val_files = ImageFiles(inputs.train_images), ImageFiles(inputs.val_images)
    train_files.check([image.name for image in train.images])
    val_files.check([image.name for image in val.images])
    images = TrainingImages(train, train_files, settings, rank=distributed.rank(), processes=distributed.world_size())
    backbone = open_backbone(
        inputs.encoder,
        architecture=inputs.backbone, seed=settings.seed, weights=inputs.weights, download=inputs.download,
    )  # fmt: skip
    detector: nn.Module = build_detector(backbone, settings, classes=len(train.categories))
    detector = batch_norm.synchronise_batch_norm(detector, device.type).to(device)
    plan = make_plan(settings, images=len(images))
    return Prepared(inputs, settings, device, plan, train, val, images, train_files, val_files, backbone, detector)


def run(prepared: Prepared, out: Path, *, display: Display) -> dict[str, Any]:
    """Trains, or resumes where an earlier call stopped, then scores and writes the result to ``out``.

    The main process must have claimed the folder and hold its lock. It returns the content of ``result.json``, the
    others an empty dictionary.
    """
    settings = prepared.settings
    training = DetectorTraining(prepared.detector, prepared.images, settings, prepared.plan, display=display)
    Engine(training, out).run()
    started = time.monotonic()
    if settings.precise_bn:
        with display.bar("BatchNorm statistics, iterations") as show:
            training.refine_batch_norm(out, settings.precise_bn, show)
    with display.bar("Detecting, images") as show, distributed.together():
        predictions = predict(
            prepared.detector, prepared.val, prepared.val_files, settings,
            categories=[category.id for category in prepared.train.categories],
            device=prepared.device, on_progress=show,
        )  # fmt: skip
    result: dict[str, Any] = {}
    with distributed.together():
        if distributed.is_main():
            result = _write(prepared, out, training, predictions, started)
    return result


def _write(
    prepared: Prepared, out: Path, training: DetectorTraining, predictions: DetectionResults, started: float
) -> dict[str, Any]:
    settings, val, unreadable = prepared.settings, prepared.val, list(predictions.unreadable.values())
    for line in skipped(unreadable):
        training.display.say(line)
    if unreadable:
        write_lines(out / VAL_SKIPPED, [{"where": where, "why": why} for where, why in unreadable])
    check_unreadable(
        unreadable, len(val.images), f"All are in {out / VAL_SKIPPED}",
        part=settings.max_unreadable, option="--set max_unreadable=",
    )  # fmt: skip
    checkpoint.save_weights(out / DETECTOR, prepared.detector, {"architecture": settings.architecture})
    write_text(out / PREDICTIONS, json.dumps(predictions.detections, separators=(",", ":")))
    write_gallery(out / GALLERY, val, prepared.val_files, predictions)
    result = {
        "finished": True,
        **score(val, predictions, masks=settings.masks, resamples=settings.bootstrap, seed=settings.seed),
        "counts": {"train": prepared.train.counts, "val": prepared.val.counts},
        "unreadable": {
            "train": read_lines(out / SKIPPED),
            "val": [{"where": where, "why": why} for where, why in unreadable],
        },
        "iterations": training.step,
        "bad_steps": int(training.counters["bad_steps"]),
        "seconds_training": training.counters["seconds"],
        "seconds_scoring": time.monotonic() - started,
        "images_per_second": training.images_per_second(),
        "parameters": sum(parameter.numel() for parameter in prepared.detector.parameters()),
        **prepared.description(),
        "encoder_text": prepared.backbone.text,
        "environment": read_json(out / ENVIRONMENT),
    }
    write_json(out / RESULT, result)  # written last, since it marks the run as complete
    return result
