"""Recipes: in which number format each linear of the decoder is built, and why.

A recipe is a TOML file. Its rules are read from top to bottom and the first whose pattern matches a
module's name decides; what no rule names stays BF16, as do the encoders, the embeddings, the
router, the norms and the convolutions.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec

from edge.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).with_name("recipes")
Format: TypeAlias = Literal["bf16", "fp8", "nvfp4", "w4a16", "int4"]
"""fp8: E4M3 weights and activations, one scale each. nvfp4: E2M1 weights and activations, a scale
for every 16. w4a16: E2M1 weights only. int4: integers in blocks of 128, weights only."""
CALIBRATED: tuple[Format, ...] = ("fp8", "nvfp4")
"""Formats whose activations have a scale, which only samples can tell."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which modules get which format."""

    modules: str
    """Pattern of module names below `language_model.`; * matches any text."""
    format: Format
    reason: str = ""
    """Why these modules differ from the rest."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named set of rules."""

    description: str
    rules: tuple[Rule, ...] = ()
    kv_cache: Literal["bf16", "fp8"] = "bf16"
    """Format in which an engine keeps keys and values."""

    def format_of(self, module: str) -> Format:
        """Format of the linear `module`, named without `language_model.`."""
        rule = self._rule_of(module)
        return "bf16" if rule is None else rule.format

    def _rule_of(self, module: str) -> Rule | None:
        """The rule that decides."""
        found = (rule for rule in self.rules if fnmatch.fnmatchcase(module, rule.modules))
        return next(found, None)

    def check(self, modules: Sequence[str]) -> None:
        """See that every rule decides something. The builder's own are for any model of the family.

        Args:
            modules: the model's linears, as `format_of` has them.
        Raises:
            ConfigurationError: one decides nothing: it names no linear, or rules before it do.
        """
        if self in map(load_recipe, known_recipes()):
            return
        deciding = {id(self._rule_of(module)) for module in modules}
        for rule in self.rules:
            if id(rule) in deciding:
                continue
            if fnmatch.filter(modules, rule.modules):
                problem, remedy = "rules before it decide all that it names", "put it before them"
            else:
                kinds = {re.sub(r"\.\d+(?=\.)", ".*", module) for module in modules}
                near = difflib.get_close_matches(rule.modules, sorted(kinds), n=3, cutoff=0.0)
                problem, remedy = "names no linear of this model", f"linears are {', '.join(near)}"
            raise ConfigurationError(f"rule {rule.modules!r}", problem, remedy)


def known_recipes() -> list[str]:
    """Names of the recipes that come with the builder."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe by its name, or from a file of one's own.

    Raises:
        ConfigurationError: there is no such recipe, or it has an unknown key or a bad value.
    """
    path = FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(name_or_path, known_recipes(), n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigurationError(
            f"recipe {name_or_path!r}",
            f"is neither known nor a file{meant}",
            f"known: {', '.join(known_recipes())}",
        )
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Recipe)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(
            path, f"is not a recipe ({error})", f"formats: {', '.join(get_args(Format))}"
        ) from None
