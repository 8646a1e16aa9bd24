"""Another method than the recipe's: what is taken over, what its paper says, and whole runs of the command line."""

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from matrix_ssl import config, networks
from matrix_ssl.config import MethodConfig, RunConfig
from matrix_ssl.config.recipes import find_recipe, list_recipes, other_methods
from matrix_ssl.encoder import load_encoder
from matrix_ssl.errors import ConfigError
from matrix_ssl.methods import complete_options, describe_method, find_method, list_methods
from matrix_ssl.runs.folder import read_config
from matrix_ssl.training import setup
from tests.methods.test_methods import OWN_METHOD, own
from tests.support import runs
from tests.support.quick import cross, some
from tests.support.runs import BARE, TINY, succeed

MASKED = ("mae", "m_mae")
# of the papers: optimizer, rate for a batch of 256, weight decay, warm-up, epochs, batch, smallest crop
PAPERS = {
    "matrix_ssl": ("sgd", 0.5, 1e-5, 10, 100, 1024, 0.2),
    "matrix_entropy": ("sgd", 0.5, 1e-5, 10, 100, 1024, 0.2),  # of the recipe: it has no paper of its own
    "mec": ("sgd", 0.5, 1e-5, 10, 100, 1024, 0.2),
    "simsiam": ("sgd", 0.05, 1e-4, 0, 100, 512, 0.2),
    "byol": ("lars", 0.2, 1.5e-6, 10, 1000, 4096, 0.08),
    "moco_v2": ("sgd", 0.03, 1e-4, 0, 200, 256, 0.2),
    "simclr": ("lars", 0.3, 1e-6, 10, 100, 4096, 0.08),
    "barlow_twins": ("lars", 0.2, 1e-6, 10, 1000, 2048, 0.08),
    "vicreg": ("lars", 0.2, 1e-6, 10, 1000, 2048, 0.08),
    "lejepa": ("adamw", 2.5e-4, 5e-4, 10, 100, 512, 0.08),
    "cor_info_max": ("sgd", 0.2 / 6, 1e-4, 10, 100, 1536, 0.08),
    "emp_ssl": ("lars", 0.768, 1e-4, 0, 30, 1024, 0.08),
    "mmcr": ("lars", 0.8, 1e-6, 10, 100, 2048, 0.08),
    "w_mse": ("adamw", 1e-3, 1e-6, 10, 100, 1024, 0.2),
    "kernel_infonce": ("lars", 0.3, 1e-6, 10, 100, 4096, 0.08),
    "swav": ("lars", 0.3, 1e-6, 10, 100, 4096, 0.14),
    "dino": ("sgd", 0.03, 1e-4, 10, 100, 512, 0.14),
    "mae": ("adamw", 1.5e-4, 0.05, 40, 800, 4096, 0.2),
    "m_mae": ("adamw", 1.5e-4, 0.05, 40, 200, 1024, 0.2),
}
OPTIONS = {
    "matrix_ssl": {"hidden_dim": 2048, "output_dim": 2048, "teacher_momentum": 0.996},
    "matrix_entropy": {"hidden_dim": 2048, "output_dim": 256, "alignment_weight": 4.0, "order": 1.0, "width": 0.0},
    "mec": {"output_dim": 2048, "distortion": 64.0, "order": 4, "logarithm": "taylor", "teacher_momentum": 0.996},
    "simsiam": {"hidden_dim": 2048, "output_dim": 2048, "constant_predictor_rate": True},
    "byol": {"hidden_dim": 4096, "output_dim": 256, "teacher_momentum": 0.996},
    "moco_v2": {"hidden_dim": 2048, "output_dim": 128, "temperature": 0.2, "queue_size": 65536,
                "teacher_momentum": 0.999},
    "simclr": {"hidden_dim": 2048, "output_dim": 128, "temperature": 0.1},
    "barlow_twins": {"hidden_dim": 8192, "output_dim": 8192, "redundancy_weight": 0.0051, "bias_rate": 0.024},
    "vicreg": {"hidden_dim": 8192, "output_dim": 8192, "invariance_weight": 25.0, "variance_weight": 25.0,
               "covariance_weight": 1.0},
    "lejepa": {"output_dim": 128, "regularisation_weight": 0.05, "slices": 1024, "knots": 17},
    "cor_info_max": {"hidden_dim": 8192, "output_dim": 512, "invariance_weight": 2000.0, "forgetting": 0.1},
    "emp_ssl": {"hidden_dim": 4096, "output_dim": 1024, "invariance_weight": 200.0},
    "mmcr": {"hidden_dim": 8192, "output_dim": 512, "local_weight": 0.0},
    "w_mse": {"hidden_dim": 1024, "output_dim": 128, "sub_batch": 256, "rounds": 4},
    "swav": {"hidden_dim": 2048, "output_dim": 128, "prototypes": 3000, "temperature": 0.1, "regularisation": 0.05},
    "dino": {"hidden_dim": 2048, "output_dim": 256, "prototypes": 65536, "teacher_momentum": 0.996},
    "mae": {"mask_ratio": 0.75, "decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
    "m_mae": {"mask_ratio": 0.75, "decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16, "rate_weight": 0.01,
              "scale": 1.0},
    "kernel_infonce": {"hidden_dim": 2048, "output_dim": 128, "kernel": "sum", "temperature": 0.1},
}  # fmt: skip


class TestUseMethod:
    @pytest.mark.parametrize(
        ("recipe", "name"),
        cross(sorted(set(list_recipes()) - {"imagenet"}), list_methods(), row="cifar10", column="byol"),
    )
    def test_options_that_both_have_are_carried_over(self, recipe: str, name: str) -> None:
        base = find_recipe(recipe)
        found = setup.use_method(base, name)
        known = complete_options(find_method(name), {})
        assert found.method.name == name
        offered = ({} if found is base else other_methods(recipe)) | dict(base.method.options)
        assert found.method.options == {k: v for k, v in offered.items() if k in known}
        one_view = "views" if found.views != base.views else "method."  # those that need a single one
        assert one_view == "method." or (name in MASKED and found.views == find_method(name).choose_views(base.views))
        assert all(line.startswith(("method.", one_view)) for line in config.differences(base, found))
        complete = setup.complete(found)
        assert complete.method.options == known | found.method.options
        assert config.from_dict(config.to_dict(complete)) == complete

    def test_widths_of_the_demo(self) -> None:
        options = setup.complete(setup.use_method(find_recipe("demo"), "simsiam")).method.options
        assert options == {"hidden_dim": 256, "output_dim": 128, "constant_predictor_rate": True}
        momentum = setup.use_method(find_recipe("demo"), "byol").method.options["teacher_momentum"]
        assert momentum == find_recipe("demo").method.options["teacher_momentum"]

    def test_the_method_of_the_paper_for_own_images(self) -> None:
        widths = {"hidden_dim": 512, "output_dim": 256}
        assert find_recipe("images_small").method == MethodConfig("matrix_entropy", widths)
        found = setup.use_method(find_recipe("images_small"), "matrix_ssl").method
        assert found.options == {**widths, "teacher_momentum": 0.95, "predictor": False}
        assert setup.use_method(find_recipe("medical"), "byol").method.options["teacher_momentum"] == 0.99

    def test_the_same_method_changes_nothing(self) -> None:
        for recipe in list_recipes():
            base = find_recipe(recipe)
            assert setup.use_method(base, base.method.name) is base

    def test_of_a_file(self, tmp_path: Path) -> None:
        path = own(tmp_path)
        assert setup.use_method(find_recipe("demo"), path).method == MethodConfig(path)
        assert setup.use_method(find_recipe("imagenet"), path).optimizer == find_recipe("imagenet").optimizer

    def test_mistakes(self) -> None:
        with pytest.raises(ConfigError, match=r"'simsaim' is not a method\. Did you mean 'simsiam'\?"):
            setup.use_method(find_recipe("demo"), "simsaim")

    def test_every_method_of_the_package_is_in_the_tables(self) -> None:
        assert PAPERS.keys() == OPTIONS.keys() == set(list_methods())

    @pytest.mark.parametrize("name", list_methods())
    def test_imagenet_takes_the_values_of_the_paper(self, name: str) -> None:
        found = setup.complete(setup.use_method(find_recipe("imagenet"), name))
        optimizer, rate, decay, warmup, epochs, batch, crop = PAPERS[name]
        chosen = found.optimizer
        assert (chosen.name, chosen.learning_rate, chosen.weight_decay) == (optimizer, rate, decay)
        assert (chosen.warmup_epochs, found.epochs, found.batch_size) == (warmup, epochs, batch)
        assert optimizer == "adamw" or chosen.momentum == 0.9
        if name in MASKED:
            assert found.views == (config.ViewConfig(crop_scale=(crop, 1.0), flip=0.5),)
            assert found.network.encoder == "timm/vit_base_patch16_224"
            assert found.method.options.items() >= OPTIONS[name].items()
            return
        each = [dataclasses.replace(view, count=1) for view in found.views for _ in range(view.count)]
        view1, view2, *local = each
        numbers = {"swav": 6, "dino": 8}  # of views that the paper adds
        assert [(view.image_size, view.crop_scale) for view in local] == [(96, (0.05, 0.14))] * numbers.get(name, 0)
        assert view1.crop_scale == view2.crop_scale == (crop, 1.0)
        assert found.method.options.items() >= OPTIONS[name].items()
        assert (found.recipe, found.network.encoder, found.data.image_size) == ("imagenet", "resnet50", 224)
        symmetric = name in ("simsiam", "moco_v2", "simclr", "w_mse", "kernel_infonce", "swav")
        assert (view1 == view2) == symmetric
        assert view2.solarize == (0.0 if symmetric else 0.2)
        assert (view1.hue, view1.brightness) == (
            (0.2, 0.8) if name in ("simclr", "kernel_infonce", "swav") else (0.1, 0.4)
        )

    def test_a_setting_given_goes_before_the_papers(self) -> None:
        base = setup.use_method(find_recipe("imagenet"), "moco_v2")
        found = setup.complete(config.override(base, ["method.queue_size=128", "epochs=3"]))
        assert (found.method.options["queue_size"], found.epochs, found.batch_size) == (128, 3, 256)


class TestDescriptions:
    @pytest.mark.parametrize("name", list_methods())
    def test_say_idea_formula_and_paper(self, name: str) -> None:
        text = describe_method(name)
        first = text.partition("\n")[0]
        assert first.endswith(".") and ": " in first and len(first) <= 120
        assert re.search(r"References?: ", text)
        assert name == "matrix_ssl" or " = " in text or "loss" in text

    @pytest.mark.parametrize("name", list_methods())
    def test_every_default_says_where_it_comes_from(self, name: str) -> None:
        source = inspect.getsource(sys.modules[find_method(name).__module__])
        lines, body = source.splitlines(), ast.parse(source).body
        (kind,) = [n for n in body if isinstance(n, ast.ClassDef) and n.name == find_method(name).__name__]
        assigned = [(n.targets[0] if isinstance(n, ast.Assign) else n.target, n) for n in body
                    if isinstance(n, ast.Assign | ast.AnnAssign)]  # fmt: skip
        constants = {target.id: n for target, n in assigned if isinstance(target, ast.Name)}
        arguments = next(n for n in kind.body if isinstance(n, ast.FunctionDef) and n.name == "__init__").args
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            home = constants[default.id] if isinstance(default, ast.Name) else argument
            assert "  # " in lines[home.lineno - 1], f"{name}: {argument.arg}"
            assert re.search(rf"\b{argument.arg}\b", ast.get_docstring(kind) or ""), f"{name}: {argument.arg}"

    def test_of_a_file(self, tmp_path: Path) -> None:
        path = own(tmp_path)
        assert describe_method(path) == f"{path}: no description"
        assert (
            describe_method(own(tmp_path, '"""Variance: mine."""\n' + inspect.cleandoc(OWN_METHOD)))
            == "Variance: mine."
        )


class TestMLP:
    def test_kinds_of_layers(self) -> None:
        def kinds(module: nn.Module) -> list[str]:
            return [type(layer).__name__ for layer in module.children()]

        assert kinds(networks.mlp(4, 5, 6, 7)) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
        assert kinds(networks.mlp(4, 5, 7, hidden_norm=False)) == ["Linear", "ReLU", "Linear"]
        assert kinds(networks.mlp(4, 7, output_norm=True)) == ["Linear", "BatchNorm1d"]

    @pytest.mark.parametrize(("hidden_bias", "output_bias"), [(False, True), (True, False), (True, True)])
    def test_biases_and_norms(self, hidden_bias: bool, output_bias: bool) -> None:
        module = networks.mlp(4, 5, 6, 7, hidden_bias=hidden_bias, output_bias=output_bias, output_norm=True)
        linear = [layer for layer in module if isinstance(layer, nn.Linear)]
        assert [layer.bias is not None for layer in linear] == [hidden_bias, hidden_bias, output_bias]
        norms = [layer for layer in module if isinstance(layer, nn.BatchNorm1d)]
        assert [layer.affine for layer in norms] == [True, True, False]

    def test_computes_what_it_says(self) -> None:
        torch.manual_seed(0)
        module = networks.mlp(4, 5, 3, hidden_norm=False, hidden_bias=True).double()
        x = torch.randn(6, 4, dtype=torch.float64)
        first, last = module[0], module[2]
        expected = (x @ first.weight.T + first.bias).clamp_min(0) @ last.weight.T + last.bias
        torch.testing.assert_close(module(x), expected)

    def test_heads_are_made_of_it(self) -> None:
        assert str(networks.projector(4, 5, 6)) == str(networks.mlp(4, 5, 5, 6, output_norm=True, output_bias=False))
        assert str(networks.predictor(6, 3)) == str(networks.mlp(6, 3, 6))


class TestCommandLine:
    def test_list(self, tmp_path: Path) -> None:
        ended = succeed(tmp_path, ["methods"])
        lines = ended.out.splitlines()
        assert [line.split()[0] for line in lines] == list_methods()
        assert all(line.split(maxsplit=1)[1] == describe_method(line.split()[0]).partition("\n")[0] for line in lines)
        assert len({line.index(line.split(maxsplit=1)[1]) for line in lines}) == 1  # one column

    @pytest.mark.parametrize("name", ["simsiam", "moco_v2"])
    def test_one(self, tmp_path: Path, name: str) -> None:
        ended = succeed(tmp_path, ["methods", name])
        assert ended.out.startswith(describe_method(name).strip() + "\n\n")
        options = dict(line.split("=", 1) for line in ended.out.splitlines() if line.startswith("method."))
        assert options == {f"method.{k}": str(v) for k, v in complete_options(find_method(name), {}).items()}

    def test_mistakes(self, tmp_path: Path) -> None:
        assert runs.fail(tmp_path, ["methods", "simsaim"]) == (
            "method.name='simsaim' is not a method. Did you mean 'simsiam'?"
        )
        arguments = ["pretrain", "demo", "--out", "r", "--method", "nowhere.py"]
        assert runs.fail(tmp_path, arguments) == "method.name='nowhere.py': there is no such file."
        text = runs.fail(tmp_path, [*arguments[:-1], "simclr", "--set", "method.temprature=1"])
        assert text == "Unknown setting 'method.temprature'. Did you mean 'temperature'?"
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("kind", some(["simsiam", "moco_v2", "file"], "file"))
    def test_a_run_from_training_to_export(self, tmp_path: Path, kind: str) -> None:
        method = Path(own(tmp_path)).name if kind == "file" else kind
        settings = ["method.weight=2.5", *(s for s in TINY if not s.startswith("method."))] if kind == "file" else TINY
        words = [word for setting in [*settings, "epochs=1", "data.subset=320"] for word in ("--set", setting)]
        arguments = ["pretrain", "demo", "--out", "r", "--device", "cpu", "--method", method, *words]
        ended = succeed(tmp_path, arguments, before=BARE)
        assert f"{method} on 320 images" in ended.err
        written: RunConfig = read_config(tmp_path / "r")
        assert written.method.name == method
        known = complete_options(find_method(str(tmp_path / method) if kind == "file" else method), {})
        assert written.method.options.keys() == known.keys()
        lines = runs.lines(tmp_path / "r")
        assert lines[-1]["step"] == 5 and np.isfinite([line["loss"] for line in lines]).all()
        assert ("teacher_momentum" in lines[-1]) == (kind == "moco_v2")
        assert succeed(tmp_path, arguments, before=BARE).err.startswith("r is complete. Use --fresh to start over.\n")

        before = "" if kind == "file" else BARE  # one page for three
        evaluated = succeed(tmp_path, ["evaluate", "r", "--device", "cpu", "--protocol", "knn"], before=before)
        assert "20-NN" in evaluated.out and "untrained" in evaluated.out
        embedded = succeed(tmp_path, ["embed", "r", "--out", "f.npz", "--split", "test", "--device", "cpu"])
        assert embedded.out == "f.npz: 360 images, 16 features each.\n"
        with np.load(tmp_path / "f.npz") as file:
            assert file["features"].shape == (360, 16) and np.isfinite(file["features"]).all()
        exported = succeed(tmp_path, ["export", "r"])
        assert "(student)" in exported.out
        tensors = load_file(tmp_path / "r" / "export.safetensors")
        student = load_encoder(tmp_path / "r").state_dict()
        assert tensors.keys() == student.keys() and all(torch.equal(tensors[k], student[k]) for k in tensors)
        if kind == "moco_v2":
            succeed(tmp_path, ["export", "r", "--weights", "teacher", "--out", "t.safetensors"])
        else:
            text = runs.fail(tmp_path, ["export", "r", "--weights", "teacher", "--out", "t.safetensors"])
            assert "r has no teacher: its checkpoint is missing or its method has none" in text
