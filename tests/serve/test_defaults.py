"""What a field is that a client leaves out: what it would be if the client had said so."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing

import msgspec
import pytest
from run_again import run_again

import edge.serve

NAMES = [f"edge.serve.{found.name}" for found in pkgutil.iter_modules(edge.serve.__path__)]
WITH_STRUCTS = [
    name for name in NAMES if "(msgspec.Struct" in inspect.getsource(importlib.import_module(name))
]


def structs(name):
    """A module's structs."""
    kinds = [kind for kind in vars(run_again(name)).values() if isinstance(kind, type)]
    return [k for k in kinds if issubclass(k, msgspec.Struct) and k.__module__ == name]


def defaults(kind):
    """Name of a field, what it may be, and what it is if it is left out."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        if field.default is not msgspec.NODEFAULT:
            yield field.name, hints[field.name], field.default
        elif field.default_factory is not msgspec.NODEFAULT:
            yield field.name, hints[field.name], field.default_factory()


def may_be_none(hint):
    """Whether null asks for nothing there."""
    if typing.get_origin(hint) is typing.Annotated:
        return may_be_none(typing.get_args(hint)[0])
    return hint is typing.Any or any(map(may_be_none, typing.get_args(hint))) or hint is type(None)


@pytest.mark.parametrize("name", WITH_STRUCTS)
def test_a_default_is_what_the_field_may_be(name):
    found = structs(name)
    assert found
    for kind in found:
        for field, hint, value in defaults(kind):
            what = f"{kind.__name__}.{field}"
            if value is msgspec.UNSET:
                continue
            if may_be_none(hint):
                assert value is None, what
            else:
                plain = msgspec.to_builtins(value)
                assert msgspec.to_builtins(msgspec.convert(plain, hint)) == plain, what
