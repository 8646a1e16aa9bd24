"""Configurations: through JSON and back, overrides, and the errors of mistyped settings."""

import dataclasses
import json
import re
from typing import Any, Literal

import pytest

from matrix_ssl.config import (
    DataConfig,
    MethodConfig,
    RunConfig,
    ViewConfig,
    check_type,
    differences,
    flatten,
    from_dict,
    override,
    to_dict,
)
from matrix_ssl.config.recipes import find_recipe, list_recipes
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs.files import read_json

RECIPES = list(list_recipes())


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_survive_json(recipe):
    config = find_recipe(recipe)
    assert config.recipe == recipe
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_every_recipe_describes_itself():
    assert sorted(RECIPES) == RECIPES
    assert all(line.endswith(".") for line in list_recipes().values())


def test_unknown_recipe():
    with pytest.raises(ConfigError, match=r"There is no recipe 'cifar-10'\. Did you mean 'cifar10'\?"):
        find_recipe("cifar-10")


@pytest.mark.parametrize(("old", "now"), [("pictures", "images"), ("pictures_small", "images_small")])
def test_a_renamed_recipe_is_named(old, now):
    with pytest.raises(ConfigError, match=rf"^There is no recipe '{old}'\. Did you mean '{now}'\?$"):
        find_recipe(old)


def test_a_configuration_of_an_earlier_version():
    old = json.loads(
        """{"recipe": "pictures", "data": {"source": "photos", "pictures": 123, "subset": 0, "image_size": 64,
            "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "crop_fraction": 0.875, "workers": -1}, "epochs": 3}"""
    )
    config = from_dict(old)
    assert (config.recipe, config.data.images, config.data.digest) == ("pictures", 123, "")
    # the run can be resumed by the recipe of today
    assert differences(config, dataclasses.replace(config, recipe="images")) == []
    assert differences(config, dataclasses.replace(config, recipe="images_small")) == [
        "recipe: 'images' -> 'images_small'"
    ]


def test_missing_keys_take_their_defaults():
    assert from_dict({}) == RunConfig()
    assert from_dict({"data": {"image_size": 32}}) == RunConfig(data=DataConfig(image_size=32))


class TestOverride:
    @pytest.mark.parametrize(
        ("assignment", "path", "value"),
        [
            ("epochs=7", ("epochs",), 7),
            ("optimizer.learning_rate=1e-3", ("optimizer", "learning_rate"), 1e-3),
            (" optimizer.learning_rate = 2 ", ("optimizer", "learning_rate"), 2.0),
            ("optimizer.name=adamw", ("optimizer", "name"), "adamw"),
            ("deterministic=true", ("deterministic",), True),
            ("deterministic=False", ("deterministic",), False),
            ("views.0.crop_scale=0.1,0.9", ("views", 0, "crop_scale"), (0.1, 0.9)),
            ("views.1.blur_sigma=(0.1, 1)", ("views", 1, "blur_sigma"), (0.1, 1.0)),
            ("data.mean=0.5,1,1", ("data", "mean"), (0.5, 1.0, 1.0)),
            ("data.value_range=", ("data", "value_range"), ()),
            ("data.source=a=b", ("data", "source"), "a=b"),
            ("data.source=", ("data", "source"), ""),
        ],
    )
    def test_values(self, assignment, path, value):
        found: Any = override(RunConfig(), [assignment])
        for name in path:
            found = found[name] if isinstance(name, int) else getattr(found, name)
        assert found == value
        assert type(found) is type(value)

    def test_changes_nothing_else_and_the_last_one_wins(self):
        base = find_recipe("demo")
        changed = override(base, ["epochs=3", "data.workers=2", "epochs=4"])
        assert changed == dataclasses.replace(base, epochs=4, data=dataclasses.replace(base.data, workers=2))
        assert base == find_recipe("demo")

    def test_a_check_of_two_settings_sees_both(self):
        assert override(RunConfig(), ["data.mean=0.5", "data.std=0.2"]).data == DataConfig(mean=(0.5,), std=(0.2,))
        with pytest.raises(
            ConfigError, match=r"data.mean=\(0.5,\), data.std=\(0.2, 0.2\): expected 1 to 16 numbers each"
        ):
            override(RunConfig(), ["data.mean=0.5", "data.std=0.2,0.2"])

    def test_options_of_the_method(self):
        base = RunConfig(method=MethodConfig("matrix_ssl", {"order": 3}))
        changed = override(base, ["method.ridge=0.5", "method.order=5", "method.name=other"])
        assert changed.method == MethodConfig("other", {"order": "5", "ridge": "0.5"})  # the method's class parses them
        assert base.method.options == {"order": 3}

    @pytest.mark.parametrize(
        ("assignment", "sentence"),
        [
            ("epochs", r"--set 'epochs': write key=value"),
            ("=3", r"--set '=3': write key=value"),
            ("flips=1", r"Unknown setting 'flips'\. Did you mean 'views.0.flip' or 'views.1.flip'\?"),
            ("xyzzy=1", r"Unknown setting 'xyzzy'\. .* Known: batch_parts, batch_size, .*, data\.\*, .*, views\.\*\.$"),
            ("start.xyzzy=1", r"Unknown setting 'start.xyzzy'\. Known: start.reference, start.origin, [a-z0-9., ]+\.$"),
            ("optimizer.learning_rat=3", r"Unknown setting .*Did you mean 'optimizer.learning_rate'\?"),
            ("optimiser=3", r"Unknown setting 'optimiser'"),
            ("temprature=3", r"An option of the method is written 'method.temprature'\. Known: batch_parts"),
            ("data=cifar10", r"Unknown setting 'data'"),
            ("data.source.x=3", r"Unknown setting 'data.source.x'"),
            ("epochs=many", r"epochs=many: expected an integer of at least 1\."),
            ("epochs=1.5", r"epochs=1.5: expected an integer of at least 1\."),
            ("epochs=", r"epochs='': expected an integer of at least 1\."),
            ("epochs=1e3", r"epochs=1e3: expected an integer of at least 1\."),
            ("epochs=inf", r"epochs=inf: expected an integer of at least 1\."),
            ("epochs=0", r"epochs=0: expected an integer of at least 1\."),
            ("seed=-1", r"seed=-1: expected an integer from 0 to 9223372036854775807\."),
            ("views.0.flip=1.2", r"views.0.flip=1.2: expected a number from 0 to 1\."),
            ("views.0.crop_ratio=2,1", r"views.0.crop_ratio=2,1: expected two increasing numbers above 0\."),
            ("views.0.crop_scale=0.5,1.5", r"expected two increasing numbers above 0 and at most 1\."),
            ("epochs=" + "9" * 400, r"epochs=9{40}: expected an integer of at most 9223372036854775807\."),
            ("epochs=" + "9" * 5000, r"expected an integer of at least 1\."),
            ("optimizer.learning_rate=nan", r"optimizer.learning_rate=nan: expected a finite number of at least 0\."),
            ("optimizer.learning_rate=inf", r"expected a finite number of at least 0\."),
            ("optimizer.learning_rate=1e999", r"expected a finite number of at least 0\."),
            ("deterministic=yes", r"deterministic=yes: expected true or false\."),
            ("deterministic=1", r"deterministic=1: expected true or false\."),
            ("optimizer.name=adam", r"expected one of sgd, adamw, lars\. Did you mean 'adamw'\?"),
            ("network.stem=tiny", r"network.stem=tiny: expected one of auto, standard, small\."),
            ("views.0.crop_scale=0.1", r"views.0.crop_scale=0.1: expected two increasing numbers above 0"),
            ("views.0.crop_scale=a,b", r"views.0.crop_scale=a,b: expected two increasing numbers above 0"),
        ],
    )
    def test_mistakes(self, assignment, sentence):
        with pytest.raises(ConfigError, match=sentence):
            override(RunConfig(), [assignment])


class TestFromDict:
    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"epoch": 3}, r"Unknown setting 'epoch'\. Did you mean 'epochs'\?"),
            ({"data": {"size": 3}}, r"Unknown setting 'data.size'"),
            ({"data": "cifar10"}, r"data='cifar10': expected a group of settings: source, images"),
            ({"method": {"options": "x"}}, r"method.options=x: expected a group of settings"),
            ({"epochs": 1.5}, r"epochs=1.5: expected an integer"),
            ({"epochs": float("inf")}, r"epochs=inf: expected an integer"),
            ({"epochs": None}, r"epochs=None: expected an integer"),
            ({"epochs": True}, r"epochs=True: expected an integer"),
            ({"optimizer": {"learning_rate": 10**400}}, r"expected a finite number"),
            ({"optimizer": {"learning_rate": False}}, r"expected a finite number"),
            ({"deterministic": 1}, r"deterministic=1: expected true or false"),
            ({"data": {"mean": 0.5}}, r"data.mean=0.5: expected values separated by commas"),
            ({"recipe": 3}, r"recipe=3: expected text"),
        ],
    )
    def test_mistakes(self, values, sentence):
        with pytest.raises(ConfigError, match=sentence):
            from_dict(values)

    def test_numbers_of_the_other_kind(self):
        config = from_dict({"epochs": 3.0, "optimizer": {"learning_rate": 1}})
        assert (config.epochs, config.optimizer.learning_rate) == (3, 1.0)
        assert (type(config.epochs), type(config.optimizer.learning_rate)) == (int, float)


class TestConstructor:
    """Ranges hold wherever settings are built, not only on the command line."""

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"epochs": 0}, r"^epochs=0: expected an integer of at least 1\.$"),
            ({"views": (ViewConfig(count=900), ViewConfig(count=101))}, r"^views: 1001 views .* more than 1000: lower"),
            ({"epoch": 1}, r"^Unknown setting 'epoch'\. Did you mean 'epochs'\?$"),
            ({"optimizer": 1}, r"^optimizer=1: expected a group of settings\.$"),
            ({"precision": "float16"}, r"^precision=float16: expected one of auto, .* Did you mean 'bfloat16'\?$"),
        ],
    )
    def test_mistakes(self, values, sentence):
        with pytest.raises(ConfigError, match=sentence):
            RunConfig(**values)

    def test_positions_and_replaced_values(self):
        with pytest.raises(ConfigError, match=r"^flip=1.5: expected a number from 0 to 1\.$"):
            dataclasses.replace(ViewConfig(), flip=1.5)
        with pytest.raises(ConfigError, match=r"^recipe=3: expected text\.$"):
            RunConfig(3)  # type: ignore[arg-type]

    def test_instances_are_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            RunConfig().epochs = 3  # type: ignore[misc]


class TestCheckType:
    @pytest.mark.parametrize(
        ("value", "expected", "result"),
        [
            ("3", int | None, 3),
            ("none", int | None, None),
            (None, int | None, None),
            ("x", int | str, "x"),
            ("2", Literal[1, 2], 2),
            (2, Literal[1, 2], 2),
            ("1,2,3", tuple[int, ...], (1, 2, 3)),
            ([1, "b"], tuple[int, str], (1, "b")),
            ("1,2;3,4", tuple[tuple[int, int], ...], ((1, 2), (3, 4))),
            ("a,b", list[str] | None, ["a", "b"]),
            ('{"a": [1]}', dict[str, Any] | str | None, {"a": [1]}),
            ("true", bool | str, True),
            ("yes", bool | str, "yes"),
            ({"any": 1}, Any, {"any": 1}),
        ],
    )
    def test_values(self, value, expected, result):
        found = check_type(value, expected, "key")
        assert found == result
        assert type(found) is type(result)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("x", int | None),
            ("3", Literal[1, 2]),
            (1, str),
            ([1], bool),
            ("yes", bool | None),
            (True, int),
            ("{", dict),
        ],
    )
    def test_mistakes_name_the_key(self, value, expected):
        with pytest.raises(ConfigError, match=r"^key="):
            check_type(value, expected, "key")


class TestDifferences:
    def test_names_every_change(self):
        old = RunConfig(method=MethodConfig("matrix_ssl", {"ridge": 0.1}))
        new = override(old, ["epochs=3", "views.1.blur=0.5", "method.order=4"])
        new = dataclasses.replace(new, method=MethodConfig("matrix_ssl", {"ridge": 0.2, "order": 4}))
        assert differences(old, new) == [
            "epochs: 100 -> 3",
            "method.options.order: None -> 4",
            "method.options.ridge: 0.1 -> 0.2",
            "views.1.blur: 0.0 -> 0.5",
        ]

    def test_a_moved_data_set_is_the_same_run(self):
        assert differences(RunConfig(), override(RunConfig(), ["data.source=elsewhere", "data.workers=3"])) == []

    def test_a_configuration_equals_itself_after_json(self):
        for recipe in RECIPES:
            config = find_recipe(recipe)
            assert differences(config, from_dict(json.loads(json.dumps(to_dict(config))))) == []


def test_flatten():
    assert flatten({"a": 1, "b": {"c": {"d": (1, 2)}, "e": None}}) == [("a", 1), ("b.c.d", (1, 2)), ("b.e", None)]


@pytest.mark.parametrize(
    "assignment",
    [
        "network.width=0",
        "data.image_size=0",
        "data.crop_fraction=1.5",
        "epochs=0",
        "batch_size=1",
        "seed=-1",
        "views.0.flip=1.2",
        "views.0.hue=0.6",
        "views.0.brightness=-0.1",
        "views.0.channel_contrast=-1",
        "views.0.noise=inf",
        "views.1.crop_scale=1,0.2",
        "views.0.blur_sigma=0,1",
        "data.std=0,1,1",
        "data.mean=0.5",
        "optimizer.learning_rate=-1",
    ],
)
def test_a_number_out_of_range_is_named(assignment: str) -> None:
    key = assignment.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}=.*: expected "):
        override(RunConfig(), [assignment])


class TestViews:
    """A list of groups of settings."""

    def test_the_place_after_the_last_one_is_a_copy_of_the_last(self):
        base = RunConfig(views=(ViewConfig(flip=0.5), ViewConfig(blur=1.0)))
        found = override(base, ["views.2.count=6", "views.2.image_size=96", "views.3.blur=0.5"])
        local = ViewConfig(count=6, image_size=96, blur=1.0)
        assert found.views == (*base.views, local, dataclasses.replace(local, blur=0.5))
        assert differences(base, override(base, ["views.0.count=2"])) == ["views.0.count: 1 -> 2"]
        assert from_dict(json.loads(json.dumps(to_dict(found)))) == found

    def test_those_of_earlier_versions(self):
        one, two = ViewConfig(flip=0.5), ViewConfig(blur=1.0)
        old = to_dict(RunConfig(views=(one, two)))
        views = old.pop("views")
        for view in views:
            del view["count"], view["image_size"]
        assert from_dict({**old, "view1": views[0], "view2": views[1]}) == RunConfig(views=(one, two))
        assert override(RunConfig(), ["view1.flip=0.5", "view2.blur=1"]).views == (one, two)

    def test_a_comparison_of_an_earlier_version_is_read_as_its_plan_is_written_today(self, tmp_path):
        plan = {"base": {"view1": {"flip": 0.5}, "view2": {"flip": 0.0}}}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        views = [{"count": 1, "image_size": 0, "flip": flip} for flip in (0.5, 0.0)]
        assert read_json(tmp_path / "plan.json") == {"base": {"views": views}}

    @pytest.mark.parametrize(
        ("assignment", "sentence"),
        [
            ("views.3.flip=1", r"Unknown setting 'views.3.flip': views has 2 groups, the next one is views.2\.$"),
            ("views.x.flip=1", r"Unknown setting 'views.x.flip'"),
            ("views.0=1", r"Unknown setting 'views.0'"),
            ("views=1", r"views='1': expected a list of groups of settings\."),
            ("views.0.count=0", r"views.0.count=0: expected an integer of at least 1\."),
            ("views.2.flip=2", r"views.2.flip=2: expected a number from 0 to 1\."),
            ("view3.flip=1", r"Unknown setting 'view3.flip'"),
        ],
    )
    def test_mistakes(self, assignment, sentence):
        with pytest.raises(ConfigError, match=sentence):
            override(RunConfig(), [assignment])

    def test_at_least_one(self):
        """How many a method needs is checked where it is built."""
        assert RunConfig(views=(ViewConfig(count=2),)).views[0].count == 2
        assert RunConfig(views=(ViewConfig(),)).views[0].count == 1
        with pytest.raises(ConfigError, match=r"views: an image needs one view or more\. Use --set views.0.count=2\."):
            RunConfig(views=())
        with pytest.raises(ConfigError, match=r"views=3: expected a list of groups of settings\."):
            from_dict({"views": 3})
        with pytest.raises(ConfigError, match=r"views.0='x': expected a group of settings: count, image_size"):
            from_dict({"views": ["x"]})
