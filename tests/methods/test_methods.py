"""Finding methods and their options, and Matrix-SSL as a module that trains."""

import copy
import textwrap
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import torch
from annotated_types import Ge
from torch import nn

from matrix_ssl.errors import ConfigError
from matrix_ssl.losses import matrix_ssl_loss, matrix_ssl_terms, matrix_ssl_variant_terms
from matrix_ssl.methods import Method, complete_options, find_method, list_methods
from matrix_ssl.methods.matrix_ssl import MatrixSSL
from matrix_ssl.networks import build_encoder

OWN_METHOD = """
    from __future__ import annotations
    from dataclasses import dataclass
    from typing import Literal

    import torch
    from matrix_ssl.methods import Method, StepOutput
    from matrix_ssl.methods.matrix_ssl import MatrixSSL  # imported, not defined here

    @dataclass
    class Settings:
        weight: float

    class Variance(Method):
        def __init__(self, encoder, feature_dim, *, weight: float = 1.0, kind: Literal["a", "b"] = "a", free=None):
            super().__init__()
            self.encoder, self.settings = encoder, Settings(weight)

        def forward(self, view1, view2):
            f1, f2 = self.encoder(view1), self.encoder(view2)
            loss = self.settings.weight * (f1 - f2).square().mean()
            return StepOutput(loss, {"distance": loss.detach()}, f1.detach(), f1.detach(), f2.detach())
"""


SMALL = {"hidden_dim": 4, "output_dim": 4, "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
ABOVE_ZERO = [(0.0, "a finite number above 0"), (-1.0, "a finite number above 0")]
NOT_NEGATIVE = [(-0.5, "a finite number of at least 0")]
FRACTION = [(-0.1, "a number from 0 to 1"), (1.5, "a number from 0 to 1")]
AT_LEAST_ONE = [(0, "an integer of at least 1"), (-3, "an integer of at least 1")]
OUT_OF_RANGE = {
    "hidden_dim": AT_LEAST_ONE, "output_dim": AT_LEAST_ONE, "order": AT_LEAST_ONE, "queue_size": AT_LEAST_ONE,
    "slices": AT_LEAST_ONE, "knots": [(1, "an integer of at least 2")], "ridge": ABOVE_ZERO, "distortion": ABOVE_ZERO,
    "temperature": ABOVE_ZERO, "bias_rate": ABOVE_ZERO, "teacher_momentum": FRACTION, "distortion_warmup": FRACTION,
    "regularisation_weight": FRACTION, "uniformity_weight": NOT_NEGATIVE, "alignment_weight": NOT_NEGATIVE,
    "redundancy_weight": NOT_NEGATIVE, "invariance_weight": NOT_NEGATIVE, "variance_weight": NOT_NEGATIVE,
    "covariance_weight": NOT_NEGATIVE, "local_weight": NOT_NEGATIVE, "forgetting": FRACTION, "mixture": FRACTION,
    "shrinkage": FRACTION, "rounds": AT_LEAST_ONE, "sub_batch": [(-1, "an integer of at least 0")],
    "regularisation": ABOVE_ZERO, "iterations": [(-1, "an integer of at least 0")], "prototypes": AT_LEAST_ONE,
    "frozen": FRACTION, "queue_start": FRACTION, "student_temperature": ABOVE_ZERO, "teacher_temperature": ABOVE_ZERO,
    "first_teacher_temperature": ABOVE_ZERO, "temperature_warmup": FRACTION, "centre_momentum": FRACTION,
    "mask_ratio": [(0.0, "a number above 0 and below 1"), (1.0, "a number above 0 and below 1")],
    "decoder_dim": AT_LEAST_ONE, "decoder_depth": AT_LEAST_ONE, "decoder_heads": AT_LEAST_ONE,
    "rate_weight": NOT_NEGATIVE, "scale": ABOVE_ZERO, ("swav", "queue_size"): [(-1, "an integer of at least 0")],
    "exponent": [(0.0, "a number above 0 and at most 2"), (2.5, "a number above 0 and at most 2")],
    "width": NOT_NEGATIVE, ("matrix_entropy", "order"): ABOVE_ZERO,
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """A type of a user's method."""

    first: float


class Variance(Method):
    """A user's method without options."""

    def __init__(self, encoder, feature_dim):
        super().__init__()
        self.encoder = encoder

    def forward(self, view1, view2):
        raise NotImplementedError


def views(n=16, side=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(n, 1, side, side, generator=generator)
    return [(base + 0.3 * torch.randn(n, 1, side, side, generator=generator)).to(dtype) for _ in range(2)]


@pytest.fixture
def method():
    torch.manual_seed(0)
    encoder, width = build_encoder("tiny_resnet", channels=1, image_size=8, width=8)
    return MatrixSSL(encoder, width, hidden_dim=32, output_dim=12)


def bare(method):
    """An encoder that a method takes, and its width: one without parameters where that will do."""
    if not method.needs_tokens:
        return nn.Flatten(), 64
    pytest.importorskip("timm")
    return build_encoder("timm/test_vit", channels=1, image_size=8, patch_size=2)


def own(tmp_path, text=OWN_METHOD, name="variance.py"):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return str(path)


class TestFinding:
    def test_of_the_package(self):
        assert "matrix_ssl" in list_methods()
        assert not any(name.startswith("_") for name in list_methods())
        for name in list_methods():
            assert issubclass(find_method(name), Method)
        assert find_method("matrix_ssl") is MatrixSSL

    @pytest.mark.parametrize("name", ["variance.py", "random.py", "my method.py"])
    def test_of_a_file_anywhere(self, tmp_path, name):
        import random

        found = find_method(own(tmp_path, name=name))
        assert found.__name__ == "Variance"
        module = found(nn.Flatten(), 64, **complete_options(found, {"weight": "2.5"}))
        one, two = views()
        assert module(one, two).loss.item() == pytest.approx(2.5 * (one - two).square().mean().item(), rel=1e-6)
        assert module.schedule(0.5) == {}
        assert module.teacher_encoder() is None
        assert "Method" not in vars(random)

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [("matrix_sll", r"'matrix_sll' is not a method\. Did you mean 'matrix_ssl'\?"), ("_base", "is not a method"),
         ("nowhere/mine.py", r"method.name='nowhere/mine.py': there is no such file\."),
         ("m" * 300 + ".py", r"m\.py': there is no such file\.")],
    )  # fmt: skip
    def test_mistakes(self, name, sentence):
        with pytest.raises(ConfigError, match=sentence):
            find_method(name)

    def test_an_error_in_a_file_of_the_home_folder_names_its_line(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        own(tmp_path, "import math\n\nmath.absent\n", "bad.py")
        with pytest.raises(ConfigError, match=r"method.name='~/bad.py': line 3: AttributeError"):
            find_method("~/bad.py")

    @pytest.mark.parametrize(("text", "number"), [("x = 1", 0), (OWN_METHOD + "\n    class Other(Variance): ...", 2)])
    def test_a_file_without_exactly_one(self, tmp_path, text, number):
        with pytest.raises(ConfigError, match=f"expected one subclass of Method in the file, found {number}"):
            find_method(own(tmp_path, text))


class TestOptions:
    def test_are_completed_and_parsed(self):
        found = complete_options(MatrixSSL, {"ridge": "0.5", "order": "3", "logarithm": "taylor"})
        assert (found["ridge"], found["order"], found["logarithm"]) == (0.5, 3, "taylor")
        assert list(found) == list(complete_options(MatrixSSL, {}))
        assert complete_options(MatrixSSL, found) == found

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"rigde": 1}, r"Unknown setting 'method.rigde'\. Did you mean 'ridge'\?"),
            ({"encoder": 1}, r"Unknown setting 'method.encoder'"),
            ({"ridge": "much"}, r"method.ridge=much: expected a finite number"),
            ({"order": 2.5}, r"method.order=2.5: expected an integer"),
            ({"logarithm": "log"}, r"method.logarithm=log: expected one of exact, taylor"),
        ],
    )
    def test_mistakes(self, options, sentence):
        with pytest.raises(ConfigError, match=sentence):
            complete_options(MatrixSSL, options)

    def test_of_a_file(self, tmp_path):
        found = find_method(own(tmp_path))
        assert complete_options(found, {"kind": "b", "free": "text"}) == {"weight": 1.0, "kind": "b", "free": "text"}
        with pytest.raises(ConfigError, match=r"method.kind=c: expected one of a, b"):
            complete_options(found, {"kind": "c"})

    def test_a_method_with_its_own_range_and_one_with_types_of_its_own(self):
        class Own(Variance):
            def __init__(
                self, encoder, feature_dim, *, depth: Annotated[int, Ge(2)] = 2, settings: Weights | None = None
            ):
                super().__init__(encoder, feature_dim)
                self.depth, self.settings = depth, settings

        assert complete_options(Own, {"depth": "3"}) == {"depth": 3, "settings": None}
        assert Own(nn.Flatten(), 64, settings=Weights(2.0)).settings == Weights(2.0)
        with pytest.raises(ConfigError, match=r"^method.depth=1: expected an integer of at least 2\.$"):
            complete_options(Own, {"depth": "1"})
        with pytest.raises(ConfigError, match=r"^method.depth=1: expected an integer of at least 2\.$"):
            Own(nn.Flatten(), 64, depth=1)

    def test_without_a_default_must_be_given(self):
        class Demanding(MatrixSSL):
            def __init__(self, encoder, feature_dim, *, size: Literal[1, 2]):
                super().__init__(encoder, feature_dim)

        assert complete_options(Demanding, {"size": "2"}) == {"size": 2}
        with pytest.raises(ConfigError, match=r"method.size has no default: give it with --set method.size=VALUE"):
            complete_options(Demanding, {})

    @pytest.mark.parametrize("name", list_methods())
    def test_out_of_range(self, name):
        method = find_method(name)
        known = complete_options(method, {})
        assert {option for option, value in known.items() if type(value) in (int, float)} <= OUT_OF_RANGE.keys()
        for option in known.keys() & OUT_OF_RANGE.keys():
            for value, sentence in OUT_OF_RANGE.get((name, option), OUT_OF_RANGE[option]):
                with pytest.raises(ConfigError, match=rf"^method\.{option}={value}: expected {sentence}\.$"):
                    method(nn.Flatten(), 64, **{**SMALL, option: value} if option in SMALL else {option: value})

    @pytest.mark.parametrize("name", list_methods())
    def test_limits_are_in_range(self, name):
        method = find_method(name)
        limits = {"hidden_dim": 1, "output_dim": 1, "order": 1, "queue_size": 1, "slices": 1, "knots": 2,
                  "teacher_momentum": 1.0, "distortion_warmup": 0.0, "uniformity_weight": 0.0, "alignment_weight": 0.0,
                  "redundancy_weight": 0.0, "regularisation_weight": 1.0, "invariance_weight": 0.0,
                  "variance_weight": 0.0, "covariance_weight": 0.0, "local_weight": 0.0, "forgetting": 1.0,
                  "mixture": 1.0, "shrinkage": 1.0, "rounds": 1, "sub_batch": 0, "exponent": 2.0,
                  "width": 0.0, "iterations": 0, "prototypes": 1, "frozen": 0.0, "queue_start": 0.0,
                  "temperature_warmup": 0.0, "centre_momentum": 1.0,
                  "decoder_dim": 4, "decoder_depth": 1, "decoder_heads": 1, "rate_weight": 0.0}  # fmt: skip
        given = {key: value for key, value in limits.items() if key in complete_options(method, {})}
        built = method(*bare(method), **given)
        for key, value in given.items():
            assert getattr(built, key, value) == value

    @pytest.mark.parametrize("name", list_methods())
    def test_variants_are_options(self, name):
        method = find_method(name)
        defaults = complete_options(method, {})
        for variant in method.variants:
            assert variant and complete_options(method, variant).items() >= variant.items()
            small = {key: value for key, value in SMALL.items() if key in defaults}
            method(*bare(method), **complete_options(method, small | dict(variant)))


class TestMatrixSSL:
    def test_loss_is_that_of_its_networks(self, method):
        one, two = views()
        output = method(one, two)
        student = nn.Sequential(method.encoder, method.projector, method.predictor)
        teacher = nn.Sequential(method.teacher["encoder"], method.teacher["projector"])
        z1, z2, p1, p2 = student(one), student(two), teacher(one), teacher(two)
        terms = matrix_ssl_terms(z1, z2, p1, p2, objective=method.objective)
        assert set(output.terms) == {"uniformity", "alignment", "negative_determinants"}
        torch.testing.assert_close(output.terms["uniformity"], terms.uniformity.detach())
        torch.testing.assert_close(output.terms["alignment"], terms.alignment.detach())
        torch.testing.assert_close(output.loss, terms.uniformity + method.objective.alignment_weight * terms.alignment)
        torch.testing.assert_close(output.features, method.encoder(one).detach())
        torch.testing.assert_close(output.student, z1.detach())
        torch.testing.assert_close(output.teacher, p2)
        assert not any(t.requires_grad for t in (*output.terms.values(), *output[2:]))
        assert set(method.counters) <= set(output.terms)

    def test_options_reach_the_loss(self):
        torch.manual_seed(0)
        encoder, width = build_encoder("tiny_resnet", channels=1, image_size=8, width=8)
        options = {"ridge": 0.7, "uniformity_weight": 0.3, "logarithm": "taylor", "order": 3}
        method = MatrixSSL(encoder, width, hidden_dim=8, output_dim=6, alignment_weight=2.5, **options)
        one, two = views()
        z1, z2 = (method.predictor(method.projector(encoder(v))) for v in (one, two))
        p1, p2 = (method.projector(encoder(v)) for v in (one, two))  # the teacher is still a copy
        expected = matrix_ssl_loss(z1, z2, p1, p2, alignment_weight=2.5, **options)
        torch.testing.assert_close(method(one, two).loss, expected)

    @pytest.mark.parametrize("uniformity", ["cross", "own", "entropy"])
    def test_other_terms_reach_the_loss(self, uniformity):
        torch.manual_seed(0)
        encoder, width = build_encoder("tiny_resnet", channels=1, image_size=8, width=8)
        terms = {"uniformity": uniformity, "alignment": "images"}
        method = MatrixSSL(encoder, width, hidden_dim=8, output_dim=6, ridge=0.2, predictor=False, **terms)
        one, two = views()
        z1, z2 = (method.projector(encoder(v)) for v in (one, two))
        p1, p2 = (method.projector(encoder(v)).detach() for v in (one, two))  # the teacher is still a copy
        expected = matrix_ssl_variant_terms(z1, z2, p1, p2, objective=method.objective, **terms).loss
        found = method(one, two).loss
        torch.testing.assert_close(found, expected)
        weights = list(method.projector.parameters())
        for a, b in zip(*(torch.autograd.grad(loss, weights) for loss in (found, expected)), strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("uniformity", ["own", "entropy"])
    def test_one_term_has_to_compare_the_views_of_an_image(self, uniformity):
        with pytest.raises(ConfigError, match=f"method.uniformity={uniformity} with .*: add --set method.alignment"):
            MatrixSSL(nn.Flatten(), 64, hidden_dim=8, output_dim=6, uniformity=uniformity)

    @pytest.mark.parametrize("uniformity", ["own", "entropy"])
    def test_a_series_that_is_not_used_is_refused(self, uniformity):
        settings = {"uniformity": uniformity, "alignment": "images", "logarithm": "taylor"}
        with pytest.raises(ConfigError, match=f"logarithm=taylor changes nothing with method.uniformity={uniformity}"):
            MatrixSSL(nn.Flatten(), 64, hidden_dim=8, output_dim=6, **settings)

    def test_gradient_reaches_all_of_the_student_and_none_of_the_teacher(self, method):
        method(*views()).loss.backward()
        gradients = {name: p.grad for name, p in method.named_parameters()}
        assert all(g is None for name, g in gradients.items() if name.startswith("teacher."))
        student = {name: g for name, g in gradients.items() if not name.startswith("teacher.")}
        assert all(g is not None and torch.isfinite(g).all() for g in student.values())
        assert all(g.abs().max() > 0 for g in student.values())
        assert {name.partition(".")[0] for name in student} == {"encoder", "projector", "predictor"}

    def test_one_step_lowers_the_loss_of_the_batch(self, method):
        method.double()
        one, two = views(dtype=torch.float64)
        trainable = [p for p in method.parameters() if p.requires_grad]
        before = method(one, two).loss
        gradients = torch.autograd.grad(before, trainable)
        with torch.no_grad():
            for p, g in zip(trainable, gradients, strict=True):
                p -= 1e-3 * g
        expected = 1e-3 * sum(g.square().sum() for g in gradients)
        assert (before - method(one, two).loss).item() == pytest.approx(expected.item(), rel=0.1)

    def test_teacher_follows_with_the_scheduled_momentum(self, method):
        before = copy.deepcopy(method.teacher.state_dict())
        with torch.no_grad():
            for p in (*method.encoder.parameters(), *method.projector.parameters()):
                p += 1
        momentum = method.schedule(0.25)["teacher_momentum"]
        assert method.teacher_momentum < momentum < 1
        method.after_step(0.25)
        for name, p in method.teacher.named_parameters():
            torch.testing.assert_close(p, before[name] + (1 - momentum))
        after = copy.deepcopy(method.teacher.state_dict())
        method.after_step(1.0)  # the momentum has risen to one
        assert all(torch.equal(v, after[k]) for k, v in method.teacher.state_dict().items() if v.is_floating_point())

    def test_its_forward_leaves_the_teacher_as_it_is(self, method):
        before = copy.deepcopy(method.teacher.state_dict())
        method.train()(*views())
        after = method.teacher.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items() if v.is_floating_point())

    def test_exports_the_encoders(self, method):
        assert method.teacher_encoder() is method.teacher["encoder"]
        names = method.encoder.state_dict().keys()
        assert method.teacher_encoder().state_dict().keys() == names
        assert {f"encoder.{n}" for n in names} | {f"teacher.encoder.{n}" for n in names} <= method.state_dict().keys()

    def test_loss_is_float32_under_autocast(self, method):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = method(*views())
        assert output.loss.dtype == torch.float32
        output.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in method.encoder.parameters())

    def test_narrow_outputs_have_a_predictor(self):
        method = MatrixSSL(nn.Flatten(), 64, hidden_dim=4, output_dim=2)
        assert torch.isfinite(method(*views()).loss)
