"""What a JSON Schema leaves open, and what becomes of it."""

from __future__ import annotations

import msgspec
import pytest

from edge.model.constrain import grammar_of_schema
from edge.serve.protocol import ResponseFormat
from edge.serve.wishes import grammar_of

A, B = {"a": {"type": "integer"}}, {"b": {"type": "integer"}}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": A},
        {"type": "object", "properties": A, "required": ["a"]},
        {"type": "array", "items": {"properties": A}},
        {"properties": {"inner": {"properties": A}, "additionalProperties": {"type": "null"}}},
        {"$defs": {"Inner": {"properties": A}}, "$ref": "#/$defs/Inner"},
        {"anyOf": [{"properties": A}, {"type": "null"}]},
        {"properties": {"not": {"const": {"properties": {}}}, "if": {"type": "null"}}},
    ],
)
def test_properties_that_a_schema_does_not_name_are_not_made_up(schema):
    assert '"additionalProperties": false' in grammar_of_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {}},
        {"properties": A, "additionalProperties": True},
        {"properties": A, "additionalProperties": {"type": "string"}},
        {"properties": A, "patternProperties": {"^x": {}}},
        {"properties": A, "required": ["a", "other"]},
        {"allOf": [{"properties": A, "required": ["a"]}, {"properties": B, "required": ["b"]}]},
        {"properties": A, "anyOf": [{"properties": B, "required": ["b"]}]},
        {"const": {"properties": A}},
        {"enum": [{"properties": A}]},
    ],
)
def test_what_a_schema_says_of_other_properties_holds(schema):
    assert '"additionalProperties": false' not in grammar_of_schema(schema)


def test_a_json_object_may_have_a_schema():
    wanted = msgspec.convert({"type": "json_object", "schema": {"const": 3}}, ResponseFormat)
    assert grammar_of(wanted, None, [], calls=False) == grammar_of_schema({"const": 3})
