import pytest
import yaml

from foveate.errors import InvalidValueError
from foveate.experiments.config import CompareConfig, RunConfig
from foveate.experiments.configfile import merged, parse, read_yaml, to_yaml


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": {"epoch": 3}}, "unknown key 'recipe.epoch'; did you mean 'recipe.epochs'?"),
        ({"host_name": "x"}, "unknown key 'host_name'; did you mean 'host'?"),
        ({"mechanisms": [{"key": "se", "option": {}}]}, "did you mean 'mechanisms.0.options'?"),
        ({"recipe": {"epochs": 0}}, "recipe.epochs: must be greater than or equal to 1, but got 0"),
        ({"recipe": {"epochs": True}}, "recipe.epochs: must be a valid integer, but got True"),
        ({"recipe": {"lr": "fast"}}, "recipe.lr: must be a valid number"),
        ({"recipe": {"lr": float("nan")}}, "recipe.lr: must be"),
        ({"recipe": {"optimizer": "lion"}}, "must be 'sgd', 'adam' or 'adamw', but got 'lion'"),
        ({"recipe": {"augment": "fulll"}}, "recipe.augment: unknown augment 'fulll'; did you mean"),
        ({"recipe": {"warmup_epochs": 100}}, "warmup_epochs must not exceed epochs"),
        ({"recipe": 5}, "recipe: must be keys with values, but got 5"),
        ({"data": 3}, "data: must be keys with values, but got 3"),
        ({"seeds": 0}, "seeds: must be at least 1, or a list of seeds, but got 0"),
        ({"seeds": "two"}, "seeds: must be a count or a list of seeds, but got 'two'"),
        ({"seeds": True}, "seeds: must be a list, but got True"),
        ({"seeds": [1, 1]}, "each seed counts once"),
        ({"mechanisms": "se,se"}, "'se' stands 2 times"),
        ([1], "the configuration: must be keys with values, but got [1]"),
    ],
)
def test_a_mistake_is_named_in_one_line(values, message):
    with pytest.raises(InvalidValueError) as caught:
        parse(CompareConfig, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_gives_back_the_same_configuration(tmp_path):
    config = parse(
        CompareConfig,
        {
            "mechanisms": [{"key": "se", "name": "se 4", "options": {"reduction": 4}}],
            "seeds": "5,7",
        },
    )
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    assert parse(CompareConfig, read_yaml(path)) == config
    assert config.seeds == (5, 7)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    values = yaml.safe_load("recipe: {lr: 1e-3}")
    assert values["recipe"]["lr"] == "1e-3"
    assert parse(RunConfig, values).recipe.lr == 0.001


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "not valid YAML"), ("- 1", "holds a list"), (b"\xff\xfe\xff", "not UTF-8")],
)
def test_unreadable_yaml(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidValueError, match=message):
        read_yaml(path)


def test_missing_yaml(tmp_path):
    with pytest.raises(InvalidValueError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_the_data_set_chooses_the_recipe_and_given_values_win():
    digits = parse(RunConfig, {})
    cifar = parse(RunConfig, {"data": "cifar10", "recipe": {"lr": 0.05}})
    assert digits.recipe.optimizer == "adamw"
    assert (cifar.recipe.optimizer, cifar.recipe.lr) == ("sgd", 0.05)


def test_changes_lie_over_the_file_key_by_key():
    file = {"data": "cifar10", "recipe": {"epochs": 3, "lr": 0.1}}
    changes = {"data": {"limit": 10}, "recipe": {"lr": 0.2}}
    assert merged(file, changes) == {
        "data": {"name": "cifar10", "limit": 10},
        "recipe": {"epochs": 3, "lr": 0.2},
    }


def test_the_grid_shares_its_place_but_a_mechanism_may_have_its_own():
    config = parse(
        CompareConfig,
        {"mechanisms": ["eca", {"key": "se", "where": "post", "init": "paper"}], "where": "conv"},
    )
    bare, static, eca, se = config.variants()
    assert bare is None
    assert [static.key, static.where, static.init] == ["static", "conv", "identity"]
    assert [eca.key, eca.where, eca.init] == ["eca", "conv", "identity"]
    assert [se.key, se.where, se.init] == ["se", "post", "paper"]


def test_the_baseline_cannot_be_left_out():
    config = parse(CompareConfig, {"controls": [], "mechanisms": "none,se"})
    assert [v.label if v else "none" for v in config.variants()] == ["none", "se"]


def test_identity_holds_what_numbers_depend_on_and_nothing_else():
    base = parse(RunConfig, {})

    def identity(section, **values):
        return parse(RunConfig, {section: values}).identity()

    assert identity("recipe", tracker="none", workers=3) == base.identity()
    assert identity("data", root="/elsewhere", download=True) == base.identity()
    assert identity("recipe", label_smoothing=0.1) != base.identity()
    assert identity("data", split_seed=1) != base.identity()
