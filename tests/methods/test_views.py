"""More than two views: which pairs a loss is the mean of, and what small views are compared with."""

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from matrix_ssl import config
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.errors import ConfigError
from matrix_ssl.methods import Method
from matrix_ssl.methods._base import global_views, student_teacher_pairs, view_pairs
from matrix_ssl.methods.cor_info_max import cor_info_max_loss
from matrix_ssl.methods.emp_ssl import emp_ssl_loss
from matrix_ssl.methods.lejepa import sigreg_loss
from matrix_ssl.methods.mmcr import mmcr_loss
from matrix_ssl.training import setup
from tests.methods.test_methods import own
from tests.support.conformance import MethodConformance, views

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
PAIRWISE = ("simclr", "barlow_twins", "vicreg", "kernel_infonce", "matrix_entropy")
TEACHERS = ("simsiam", "byol", "mec", "matrix_ssl", "moco_v2")


def build(name: str, **options: object) -> Method:
    return type("Suite", (MethodConformance,), {"name": name})().build(**options)


def crops(whole: int, small: int) -> list[Tensor]:
    found = [views(step)[0] for step in range(whole)]
    return found + [views(step)[1][..., 1:5, 2:6] for step in range(small)]


def loss(method: Method, given: Sequence[Tensor]) -> Tensor:
    method.before_step(2, 10)
    return method(*given).loss.detach()


def test_pairs() -> None:
    large, small = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)
    assert global_views([large, small, large]) == [0, 2]
    assert view_pairs([large, large]) == [(0, 1)]
    assert view_pairs([large, large, small, small]) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert student_teacher_pairs([large, large]) == [(0, 1, 0, 1)]
    for count in ((2, 0), (2, 3), (3, 0), (3, 1), (1, 1)):
        given = [large] * count[0] + [small] * count[1]
        orders = [order for a, b, c, d in student_teacher_pairs(given) for order in ((a, d), (b, c))]
        expected = {(s, t) for s in range(sum(count)) for t in range(count[0]) if s != t}
        assert set(orders) == expected and len(orders) in (len(expected), 2 * len(expected))


@pytest.mark.parametrize("name", (*PAIRWISE, *TEACHERS, "w_mse"))
def test_the_loss_of_large_views_is_the_mean_over_their_pairs(name: str) -> None:
    method = build(name, **({"queries": "both"} if name == "moco_v2" else {}))
    given = crops(3, 0)
    pairs = [loss(method, pair) for pair in itertools.combinations(given, 2)]
    torch.testing.assert_close(loss(method, given), torch.stack(pairs).mean(), **TIGHT)


@pytest.mark.parametrize("name", (*PAIRWISE, *TEACHERS))
def test_small_views_are_compared_with_every_large_one(name: str) -> None:
    """Where there is a teacher only the student sees them, so that a pair has one order instead of two."""
    method = build(name, **({"queries": "both"} if name == "moco_v2" else {}))
    one, two, small, other = crops(2, 2)
    pairs = [loss(method, (large, local)) for large in (one, two) for local in (small, other)]
    weight = 2 if name in TEACHERS else 1
    expected = (weight * loss(method, (one, two)) + sum(pairs)) / (weight + len(pairs))
    torch.testing.assert_close(loss(method, (one, two, small, other)), expected, **TIGHT)


def test_moco_compares_all_queries_with_the_last_large_view() -> None:
    method = build("moco_v2")
    one, two, small = crops(2, 1)
    k = method.teach(two)
    queries = [method.projector(method.encoder(view)) for view in (one, small)]
    expected = torch.stack([method.loss(q, k) for q in queries]).mean()
    torch.testing.assert_close(loss(method, (one, two, small)), expected.detach(), **TIGHT)


def test_lejepa_compares_all_views_with_the_mean_of_the_large_ones() -> None:
    lightly = pytest.importorskip("lightly.loss.lejepa_loss")
    method = build("lejepa", slices=32)
    given = crops(2, 3)
    z = torch.stack([method.projector(method.encoder(view)) for view in given])
    expected = lightly.lejepa_invariance_loss(all_proj=z, global_proj=z[:2])
    method.before_step(2, 10)
    output = method(*given)
    torch.testing.assert_close(output.terms["invariance"], expected.detach(), **TIGHT)
    assert output.terms["sigreg"] != sigreg_loss(z[:2], slices=32)


@pytest.mark.parametrize(("name", "function"), [("emp_ssl", emp_ssl_loss), ("mmcr", mmcr_loss)])
def test_losses_of_all_views_at_once(name: str, function) -> None:
    method = build(name)
    given = crops(2, 2)
    z = [method.projector(method.encoder(view)) for view in given]
    torch.testing.assert_close(loss(method, given), function(*z).detach(), **TIGHT)


def test_cor_info_max_has_one_branch_for_all_views_but_the_first() -> None:
    method = build("cor_info_max")
    given = crops(2, 2)
    z = [method.projector(method.encoder(view)) for view in given]
    expected = cor_info_max_loss(torch.cat([z[0]] * 3), torch.cat(z[1:])).detach()
    torch.testing.assert_close(loss(method, given), expected, **TIGHT)


class TestSetup:
    def test_a_method_that_compares_views_needs_two(self) -> None:
        base = setup.complete(setup.use_method(find_recipe("demo"), "simclr"))
        with pytest.raises(ConfigError) as caught:
            setup.build_method(dataclasses.replace(base, views=base.views[:1]))
        assert str(caught.value) == (
            "method.name='simclr' needs 2 views of an image or more, the settings have 1: use --set views.0.count=2."
        )

    def test_a_method_of_exactly_two_views(self, tmp_path) -> None:
        base = setup.complete(setup.use_method(find_recipe("demo"), own(tmp_path)))
        setup.build_method(base)
        with pytest.raises(
            ConfigError, match=r"takes 2 views of an image, the settings have 5: change the counts of views, or write"
        ):
            setup.build_method(config.override(base, ["views.2.count=3", "views.2.image_size=4"]))

    def test_an_encoder_of_one_size(self) -> None:
        base = setup.complete(setup.use_method(find_recipe("images"), "simclr"))
        local = ["views.2.image_size=32", "network.encoder=vit_b_32", "data.image_size=64"]
        with pytest.raises(
            ConfigError,
            match=r"network.encoder='vit_b_32' does not accept views of 32 pixels \(.*\): change the image_size",
        ):
            setup.build_method(config.override(base, local))

    def test_a_vision_transformer_of_timm_takes_any_size(self) -> None:
        pytest.importorskip("timm")
        base = setup.complete(setup.use_method(find_recipe("images"), "simclr"))
        settings = ["network.encoder=timm/vit_tiny_patch16_224", "data.image_size=64", "method.hidden_dim=8"]
        fixed = setup.build_method(config.override(base, settings)).encoder.eval()
        free = setup.build_method(config.override(base, [*settings, "views.2.image_size=32"])).encoder.eval()
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(free(images), fixed(images), rtol=1e-6, atol=1e-6)
            assert free(images[..., :32, :32]).shape == (2, 192)
        assert free.state_dict().keys() == fixed.state_dict().keys()
