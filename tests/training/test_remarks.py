"""What a user is told about settings that do not suit the images or the network."""

import pytest

from matrix_ssl import config
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.training import setup
from matrix_ssl.training.remarks import on_settings


def test_patches_that_leave_out_the_edge_of_the_images_are_a_warning() -> None:
    pytest.importorskip("timm")
    settings = ["network.encoder=timm/vit_tiny_patch16_224", "data.image_size=40"]
    chosen = config.override(find_recipe("images_small"), settings)
    assert on_settings(chosen, initialise_encoder(chosen)[0], images=100) == [
        "Warning: network.encoder='timm/vit_tiny_patch16_224' sees 32 of 40 rows and columns of the images, which it "
        "cuts into patches of 16: use --set data.image_size=48 or another multiple of 16."
    ]
    for other in ("data.image_size=48", "network.patch_size=8", "network.encoder=tiny_resnet"):
        whole = config.override(chosen, [other])
        assert on_settings(whole, initialise_encoder(whole)[0], images=100) == []


def test_colour_changes_of_images_without_colours_are_named() -> None:
    grey = config.override(find_recipe("cifar10_small"), ["data.mean=0.5", "data.std=0.2", "views.0.solarize=0"])
    (remark,) = on_settings(grey, initialise_encoder(grey)[0], images=100)
    assert remark.startswith("Left out of the views of 1 channel, as they are for colours: saturation, hue, grayscale")


@pytest.mark.parametrize(("method", "prototypes"), [("dino", 65536), ("swav", 3000)])
def test_more_prototypes_than_images_are_named_with_a_number_that_serves(method: str, prototypes: int) -> None:
    papers = setup.complete(setup.use_method(find_recipe("demo"), method))
    encoder = initialise_encoder(papers)[0]
    assert on_settings(papers, encoder, images=1437) == [
        f"{method} has {prototypes} prototypes for 1437 images. A few hundred serve small data as well and make the "
        "steps of a small network many times faster: use --set method.prototypes=256, for example."
    ]
    assert on_settings(papers, encoder, images=1_281_167) == []
    assert on_settings(config.override(papers, ["method.prototypes=256"]), encoder, images=1437) == []
