"""Recipes: what they choose, that the published model can follow them, and what they refuse."""

from __future__ import annotations

import pytest
from make_tiny_checkpoint import decoder_tensors
from published_config import CONFIG

from build_engine.cli import main
from build_engine.recipe import CALIBRATED, known_recipes, load_recipe
from edge.errors import ConfigurationError

COLUMNS = {"bf16": 1, "fp8": 1, "nvfp4": 16, "w4a16": 16, "int4": 128}
"""What a format's columns must be a multiple of."""


def linears():
    """Modules below `language_model.` with their shapes, of the published model."""
    for name, shape in decoder_tensors(CONFIG["llm_config"]):
        module = name.removeprefix("language_model.").removesuffix(".weight")
        if name.endswith(".weight") and len(shape) == 2:
            yield module, shape


def test_all_recipes_are_known():
    assert known_recipes() == [
        *("bf16", "fp8", "int4", "nvfp4", "nvfp4-all", "orin", "w4a16", "w4a16-all")
    ]


@pytest.mark.parametrize("name", known_recipes())
def test_the_published_model_can_follow_every_recipe(name):
    recipe = load_recipe(name)
    assert recipe.description
    chosen = {module: recipe.format_of(module) for module, _ in linears()}
    for module, (rows, columns) in linears():
        assert columns % COLUMNS[chosen[module]] == 0, module
        assert chosen[module] != "int4" or rows % 2 == 0, module
        experts = module.split(".experts.")
        if len(experts) == 2:  # engines stack the experts of a layer
            first = f"{experts[0]}.experts.0.{experts[1].split('.')[1]}"
            assert chosen[module] == chosen[first]
    kept = [module for module in chosen if ".mixer." not in module or module.endswith(".gate")]
    assert len(kept) == 2 + 23
    quantized = [module for module in kept if chosen[module] != "bf16"]
    assert quantized == (["lm_head"] if name == "w4a16-all" else [])
    experts = {f for m, f in chosen.items() if ".experts." in m}
    others = {f for m, f in chosen.items() if m.endswith(("in_proj", "shared_experts.up_proj"))}
    assert ("bf16" in experts) == (name == "bf16")
    assert ("bf16" in others) == (name in ("bf16", "orin"))


@pytest.mark.parametrize(
    ("module", "chosen"),
    [
        ("backbone.layers.1.mixer.experts.127.up_proj", "nvfp4"),
        ("backbone.layers.1.mixer.experts.0.down_proj", "nvfp4"),
        ("backbone.layers.1.mixer.shared_experts.down_proj", "fp8"),
        ("backbone.layers.1.mixer.gate", "bf16"),
        ("backbone.layers.0.mixer.in_proj", "fp8"),
        ("backbone.layers.0.mixer.out_proj", "fp8"),
        ("backbone.layers.0.mixer.conv1d", "bf16"),
        ("backbone.layers.5.mixer.q_proj", "bf16"),
        ("backbone.layers.5.mixer.o_proj", "fp8"),
        ("lm_head", "bf16"),
        ("backbone.embeddings", "bf16"),
    ],
)
def test_the_published_mix(module, chosen):
    assert load_recipe("nvfp4").format_of(module) == chosen


def test_which_recipes_need_samples():
    def calibrated(name):
        recipe = load_recipe(name)
        return recipe.kv_cache == "fp8" or any(r.format in CALIBRATED for r in recipe.rules)

    assert [n for n in known_recipes() if calibrated(n)] == ["fp8", "nvfp4", "nvfp4-all"]


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "own.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_the_first_rule_that_matches_decides(written):
    rules = 'description = "mine"\n'
    for modules, chosen in (("*.3.*", "fp8"), ("*_proj", "int4"), ("*.q_proj", "nvfp4")):
        rules += f'[[rules]]\nmodules = "{modules}"\nformat = "{chosen}"\n'
    recipe = load_recipe(written(rules))
    modules = ("layers.3.mixer.q_proj", "layers.4.mixer.q_proj", "layers.4.mixer.Q_PROJ")
    assert [recipe.format_of(module) for module in modules] == ["fp8", "int4", "bf16"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('description = "x"\nprecision = 4\n', "unknown field `precision`"),
        ('description = "x"\n[[rules]]\nmodules = "*"\nformat = "fp4"\n', "'fp4'"),
        ('description = "x"\n[[rules]]\nmodules = "*"\nformat = "fp8"\nwhy = 1\n', "`why`"),
        ('description = "x"\n[[rules]]\nformat = "fp8"\n', "required field `modules`"),
        ('description = "x"\nkv_cache = "nvfp4"\n', "kv_cache"),
        ("kv_cache = 'fp8'\n", "required field `description`"),
        ("description", "is not a recipe"),
        (b"\xff\xfe", "is not a recipe"),
    ],
)
def test_a_bad_recipe_is_named(written, text, expected, tmp_path, checkpoint, capsys):
    path, out = written(text), tmp_path / "out"
    assert main(["quantize", str(checkpoint("base")), str(out), "--recipe", path]) == 78
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"build-engine: {path}: is not a recipe")
    assert expected in lines[0]
    assert lines[0].endswith("formats: bf16, fp8, nvfp4, w4a16, int4")
    assert [p.name for p in tmp_path.iterdir()] == ["own.toml"]


@pytest.mark.parametrize(
    ("name", "hint"), [("nvfp4-al", "did you mean nvfp4-all?"), ("x", "known: bf16, fp8")]
)
def test_an_unknown_recipe_is_named(name, hint):
    with pytest.raises(ConfigurationError, match="is neither known nor a file") as caught:
        load_recipe(name)
    assert hint in str(caught.value)


LINEARS = ["backbone.layers.0.mixer.in_proj", "backbone.layers.10.mixer.in_proj", "lm_head"]


def checked(written, *rules):
    text = 'description = "mine"\n'
    for modules, chosen in rules:
        text += f'[[rules]]\nmodules = "{modules}"\nformat = "{chosen}"\n'
    load_recipe(written(text)).check(LINEARS)


def test_rules_that_decide_are_accepted(written):
    checked(written, ("*.0.*", "fp8"), ("*in_proj", "fp8"), ("*", "bf16"))
    checked(written)


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        (
            [("*", "fp8"), ("lm_head", "bf16")],
            "rule 'lm_head': rules before it decide all that it names; put it before them",
        ),
        (
            [("*in_proj", "fp8"), ("*in_proj", "fp8")],
            "rule '*in_proj': rules before it decide all that it names; put it before them",
        ),
        (
            [("*.in_proj", "fp8"), ("lm_heat", "bf16")],
            "rule 'lm_heat': names no linear of this model; linears are lm_head, "
            "backbone.layers.*.mixer.in_proj",
        ),
    ],
)
def test_the_first_rule_that_decides_nothing_is_named(written, rules, error):
    with pytest.raises(ConfigurationError) as caught:
        checked(written, *rules, ("also-nothing", "fp8"))
    assert str(caught.value) == error


@pytest.mark.parametrize("name", known_recipes())
def test_the_builders_own_are_for_any_model(name):
    load_recipe(name).check(["lm_head"])
    load_recipe(name).check([])
