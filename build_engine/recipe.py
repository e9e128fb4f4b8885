"""Recipes: in which number format each linear of the decoder is built, and why.

A recipe is a TOML file. Its rules are read from top to bottom and the first whose pattern matches a
module's name decides; what no rule names stays BF16, as do the encoders, the embeddings, the
router, the norms and the convolutions.
"""

from __future__ import annotations

import difflib
import fnmatch
import sys
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
        for rule in self.rules:
            if fnmatch.fnmatchcase(module, rule.modules):
                return rule.format
        return "bf16"


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
