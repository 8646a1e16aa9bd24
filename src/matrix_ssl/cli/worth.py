"""The command ``matrix-ssl worth``."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import click

from matrix_ssl import config as configuration
from matrix_ssl.cli import options
from matrix_ssl.errors import TrainingError
from matrix_ssl.runs.folder import check_folder, held
from matrix_ssl.training.configure import configure, default_run

_QUICK = ("steps=40", "gentle_rates=0.001,2")  # settings of the training with labels
_QUICK_IMAGES = 1000


@click.command()
@options.optional_recipe
@options.data
@click.option("--from", "reference", metavar="WHERE", required=True, help="Public encoder: a run folder, a checkpoint, "
              "or a name such as torchvision/resnet50 or timm/NAME.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), help="Number of seeds.  [default: 3]")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of each pre-training.  [default: the recipe's]")
@options.assignments("Change a setting of the pre-trainings; data.subset limits all training images")
@click.option("--adapt-set", metavar="KEY=VALUE", multiple=True, help="Change a setting of the adaptation only, such "
              "as optimizer.learning_rate; may be repeated.")  # fmt: skip
@click.option("--tune-set", metavar="KEY=VALUE", multiple=True, help="Change a setting of the trainings with labels, "
              "such as steps=1000; may be repeated.")  # fmt: skip
@click.option("--test-images", type=click.IntRange(0), help="Number of test images, chosen at random; 0: all.  "
              "[default: 0]")  # fmt: skip
@click.option("--quick", is_flag=True, help=f"A first look: unless set otherwise, one seed, two epochs, "
              f"{_QUICK_IMAGES} training and test images, and short trainings.")  # fmt: skip
@click.option("--max-unreadable", type=options.Number(0, 1), metavar="FRACTION", help="Fraction of the images that "
              "may be unreadable, from 0 to 1; ten always may.  [default: 0.01]")  # fmt: skip
@options.out("runs/worth-RECIPE or runs/worth-RECIPE-DATA", what="Folder of the results")
@options.fresh
@options.max_hours
@options.device
@options.data_root
@options.download
def worth(
    recipe: str | None, data: Any, reference: str, seeds: int | None, epochs: int | None, assignments: tuple[str, ...],
    adapt_set: tuple[str, ...], tune_set: tuple[str, ...], test_images: int | None, quick: bool,
    max_unreadable: float | None, out: Path | None, fresh: bool, device: str, data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Find out whether pre-training is worth it on labelled images. Run the same command to resume.

    At 1, 5 and 10 labels a class, 1 %, 10 % and all labels it compares raw pixels, a random encoder, a public encoder
    used frozen, the same adapted to the images, and one pre-trained on them from scratch, each with a linear classifier
    and, where it can be trained, fine-tuned. The test images are read once, at the end. One page shows curves with
    intervals, costs in minutes, and a sentence that says what the numbers support. Without a RECIPE it is images_small
    on a CPU and images on a GPU.
    """
    named = {"epochs": ("--epochs", epochs), "data.max_unreadable": ("--max-unreadable", max_unreadable)}
    configuration.check_agreement(assignments, named)
    options.check_seeds([*assignments, *adapt_set])
    if quick:
        usual = (f"data.subset={_QUICK_IMAGES}", *(() if epochs else ("epochs=2",)))
        assignments, tune_set = (*usual, *assignments), (*_QUICK, *tune_set)
        seeds, test_images = seeds or 1, _QUICK_IMAGES if test_images is None else test_images
    if epochs:
        assignments = (*assignments, f"epochs={epochs}")
    if max_unreadable is not None:
        assignments = (*assignments, f"data.max_unreadable={max_unreadable}")
    recipe = recipe or options.recipe_for(device)
    config = configure(recipe, data, assignments)
    from matrix_ssl.compare.job import has_trained, with_measured, with_precision
    from matrix_ssl.compare.worth.plan import TuningSettings, make_plan
    from matrix_ssl.compare.worth.run import PLAN, Images, WorthRun, check
    from matrix_ssl.data.sources import check_outside
    from matrix_ssl.evaluate.baselines import open_baselines
    from matrix_ssl.report.worth.data import RESULTS, read_worth
    from matrix_ssl.report.worth.page import PAGE, terminal
    from matrix_ssl.runs import devices
    from matrix_ssl.runs.environment import command
    from matrix_ssl.training.start import start_from

    chosen = {configuration.split_assignment(one)[0] for one in (*assignments, *adapt_set)}
    view = dataclasses.replace(TuningSettings().view, flip=config.views[0].flip)
    tuning = configuration.override(TuningSettings(view=view), tune_set)
    out = out or default_run(f"worth-{recipe}", data, unnamed="")
    check_folder(out, first=PLAN)
    if not out.exists():
        check_outside(out, config.data.source, data_root=data_root)
    chosen_device = devices.choose_device(device)
    config = dataclasses.replace(config, seed=0)
    started = dataclasses.replace(
        configure(recipe, data, (*assignments, *adapt_set)), start=configuration.StartConfig(reference), seed=0
    )
    begun = start_from(started, chosen=chosen, run=None, download=download)
    options.say(begun.text)
    adapted = with_measured(begun.config, data_root=data_root, download=download, say=options.say)
    earlier = out / PLAN if has_trained(out) and not fresh else None
    config = with_precision(config, chosen_device, plan=earlier, run="base")
    adapted = with_precision(adapted, chosen_device, plan=earlier, run="adapted")
    (public,) = open_baselines([reference], adapted.data, download=download)
    plan = make_plan(
        config, adapted, sha256=public.sha256, own_size=public.data.image_size,
        seeds=seeds or 3, test_images=test_images or 0, tuning=tuning,
    )  # fmt: skip
    if not fresh:
        check(plan, out)
    images = Images.open(plan, data_root=data_root, download=download)
    for remark in dict.fromkeys((*images.train.remarks, *images.test.remarks)):
        options.say(remark)
    with held(out, fresh=fresh, say=options.say, first=PLAN):
        run = WorthRun(
            plan, out, images, public,
            device=chosen_device, command=shlex.join(command()), say=options.say,
        )  # fmt: skip
        run.claim()
        run.run()
    results = read_worth(out)
    options.stdout.print(terminal(results))
    options.show(results=out / RESULTS, page=out / PAGE)
    if failed := sum(len(arm.errors) for arm in results.arms):
        raise TrainingError(f"{failed} trainings failed; the page gives the reasons.")
