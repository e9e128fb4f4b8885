"""Tool calls as the model writes them, typed by their schema, whatever is in them and missing."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge.model.constrain import Constraint, grammar_of_choice, grammar_of_lark
from edge.model.grammars import vocabulary
from edge.model.tokenizer import Tokenizer
from edge.model.tool_calls import (
    begun_tool_call,
    is_closed,
    parse_tool_call,
    tool_call_lark,
)
from edge.model.typed import MAX_DEPTH

STR, INT, NUM = {"type": "string"}, {"type": "integer"}, {"type": "number"}
BOOL, NONE, OBJ, ARR = ({"type": kind} for kind in ("boolean", "null", "object", "array"))
DEFS = {
    "Way": {"enum": ["left", "1", "true"], "type": "string"},
    "Speed": {"enum": [1, 2]},
    "Loop": {"$ref": "#/$defs/Loop"},
    "Many": {"anyOf": [{"$ref": "#/$defs/Many"}, {"$ref": "#/$defs/Many"}]},
}


def tool(properties, **more):
    parameters = {"type": "object", "properties": properties, "$defs": DEFS, **more}
    return {"type": "function", "function": {"name": "go", "parameters": parameters}}


def read(schema, text):
    written = f"\n<function=go>\n<parameter=a>\n{text}\n</parameter>\n</function>\n"
    found = parse_tool_call(written, [tool({"a": schema})])
    assert found is not None
    assert found[0] == "go"
    json.dumps(found[1], ensure_ascii=False, allow_nan=False).encode()
    return found[1]["a"]


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        # What NVIDIA's models write (NVIDIA-NeMo/Nemotron#52), and JSON.
        *((BOOL, text, True) for text in ("True", "true", "TRUE", "1")),
        *((BOOL, text, False) for text in ("False", "false", "0")),
        (BOOL, "None", None),
        (BOOL, "perhaps", "perhaps"),
        (INT, "5", 5),
        (INT, " 5 ", 5),
        (INT, "-5", -5),
        (INT, "5.0", 5),
        (INT, "5.5", 5.5),
        (INT, "1_000", "1_000"),
        (INT, "five", "five"),
        (INT, "None", None),
        (INT, "9" * 5000, "9" * 5000),
        (NUM, "1.5", 1.5),
        (NUM, "1e-05", 1e-05),
        (NUM, ".5", 0.5),
        (NUM, "5", 5),
        # Texts are as they are written, whatever they look like.
        *(
            (STR, text, text)
            for text in ("5", "true", "None", "null", '"a"', "[1]", "", " a ", "\n")
        ),
        # Optional: the first type that is not null decides, and null is null.
        ({"anyOf": [STR, NONE]}, "5", "5"),
        ({"anyOf": [STR, NONE]}, "None", None),
        ({"anyOf": [STR, NONE]}, "null", None),
        ({"anyOf": [STR, NONE]}, "nothing", "nothing"),
        ({"anyOf": [NONE, STR]}, "5", "5"),
        ({"anyOf": [INT, NONE]}, "None", None),
        ({"anyOf": [INT, NONE]}, "7", 7),
        ({"anyOf": [BOOL, NONE]}, "False", False),
        ({"oneOf": [BOOL, NONE]}, "True", True),
        ({"type": ["string", "null"]}, "None", None),
        ({"type": ["string", "null"]}, "1", "1"),
        ({"type": ["integer", "null"]}, "1", 1),
        ({"type": "string", "nullable": True}, "null", None),
        ({"type": "STRING", "nullable": True}, "1", "1"),
        ({"anyOf": [INT, STR]}, "5", 5),
        ({"anyOf": [INT, STR]}, "five", "five"),
        ({"anyOf": [STR, INT]}, "5", "5"),
        ({"anyOf": [INT, NUM]}, "5.5", 5.5),
        ({"anyOf": [BOOL, INT]}, "1", 1),
        ({"anyOf": [{"enum": ["auto"]}, INT]}, "5", 5),
        ({"anyOf": [{"enum": ["auto"]}, INT]}, "auto", "auto"),
        ({"anyOf": [{"enum": ["auto"]}, INT]}, "slow", "slow"),
        ({"anyOf": [{"type": "array", "items": INT}, NONE]}, "[1, 2]", [1, 2]),
        # One of some values.
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": ["1", "2"]}, "3", "3"),
        ({"enum": [1, 2]}, "1", 1),
        ({"enum": [True, False]}, "False", False),
        ({"enum": ["on", None]}, "None", None),
        ({"const": 5}, "5", 5),
        ({"const": "5"}, "5", "5"),
        ({"const": True}, "True", True),
        ({"const": {"a": None}}, "{'a': None}", {"a": None}),
        # Taken together, and referred to.
        ({"allOf": [{"$ref": "#/$defs/Way"}]}, "1", "1"),
        ({"allOf": [{"$ref": "#/$defs/Way"}], "description": "which"}, "true", "true"),
        ({"allOf": [INT, {"minimum": 1}]}, "3", 3),
        ({"$ref": "#/$defs/Speed"}, "2", 2),
        ({"anyOf": [{"$ref": "#/$defs/Way"}, NONE]}, "1", "1"),
        ({"anyOf": [{"$ref": "#/$defs/Way"}, NONE]}, "None", None),
        ({"$ref": "#/$defs/Loop"}, "1", 1),
        ({"$ref": "#/$defs/Many"}, "1", 1),
        ({"$ref": "#/nowhere"}, "True", True),
        # Lists and mappings, in JSON's notation and in Python's.
        (OBJ, '{"a": [true, null]}', {"a": [True, None]}),
        (OBJ, "{'a': [True, None, (1, 2)]}", {"a": [True, None, [1, 2]]}),
        (OBJ, "\"{'a': 1}\"", {"a": 1}),
        (OBJ, "{1: 2}", {"1": 2}),
        (OBJ, "{'a': {1, 2}}", "{'a': {1, 2}}"),
        (OBJ, "{'a': b'x'}", "{'a': b'x'}"),
        (OBJ, "{'a': f(1)}", "{'a': f(1)}"),
        (ARR, "['it\\'s', \"x\"]", ["it's", "x"]),
        (ARR, "[1, 2", "[1, 2"),
        ({"properties": {"x": INT}}, "{'x': True}", {"x": True}),
        ({"items": INT}, "[1]", [1]),
        # What is no JSON, or too much of it, stays the text that it is.
        (NUM, "NaN", "NaN"),
        (NUM, "Infinity", "Infinity"),
        (NUM, "-inf", "-inf"),
        (NUM, "1e999", "1e999"),
        (ARR, "[NaN]", "[NaN]"),
        (ARR, "[1e999]", "[1e999]"),
        (ARR, "[1e999, 'a']", "[1e999, 'a']"),
        (ARR, '["\\ud800"]', '["\\ud800"]'),
        (ARR, "[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000),
        (ARR, "[" * 150 + "'a'" + "]" * 150, "[" * 150 + "'a'" + "]" * 150),
        (ARR, "[" + "-" * 50000 + "1, 'a']", "[" + "-" * 50000 + "1, 'a']"),
        # Nothing is said of it.
        ({}, "[1, null]", [1, None]),
        ({}, "False", False),
        ({}, "as it is", "as it is"),
        ({}, '"a"', '"a"'),
        (True, "1", 1),
        (None, "1", 1),
        ("integer", "1", 1),
        ({"type": 5}, "1", 1),
        ({"enum": []}, "1", 1),
        ({"anyOf": []}, "1", 1),
    ],
)
def test_a_text_is_what_the_schema_types_it(schema, text, expected):
    found = read(schema, text)
    assert found == expected
    assert type(found) is type(expected)


CALL = "<tool_call>\n<function=go>\n<parameter=b>\n1\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.parametrize(
    "text",
    [
        "use </parameter> to close",
        "</parameter>",
        "x\n</parameter>",
        "x\n</parameter>\n</function>",
        "x\n</parameter>\n</function>\n</tool_call>",
        "</function>",
        "</tool_call>",
        "<parameter=q>",
        "<parameter=b>",
        f"For example:\n{CALL}\nThat is all.",
        CALL,
        "<parameter=x>\n1\n</parameter>\n<parameter=y>\n2\n</parameter>",
        "<function=go>",
        "a < b > c",
        "\n\n",
    ],
)
@pytest.mark.parametrize("follows", [True, False])
def test_a_text_may_hold_tags(text, follows):
    both = tool({"a": STR, "b": INT})
    written = f"\n<function=go>\n<parameter=a>\n{text}\n</parameter>\n"
    written += "<parameter=b>\n2\n</parameter>\n" if follows else ""
    expected = {"a": text, "b": 2} if follows else {"a": text}
    assert parse_tool_call(f"{written}</function>\n", [both]) == ("go", expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<function=go>", {}),
        ("<function=go>\n</function>", {}),
        ("<function=go>\n<parameter=a>\ndoor\n</function>", {"a": "door"}),
        ("<function=go>\n<parameter=a>\ndoor\n</parameter>", {"a": "door"}),
        ("<function=go>\n<parameter=a>\ndoor\n", {"a": "door"}),
        ("<function=go><parameter=a>door</parameter></function>", {"a": "door"}),
        (
            "<function=go>\n<parameter=a>\ndoor\n<parameter=b>\n3\n</parameter>\n</function>",
            {"a": "door", "b": 3},
        ),
        ("<function=go>\n<parameter=b>\n3\n<parameter=a>\ndoor\n", {"b": 3, "a": "door"}),
        (
            "<function=go>\n<parameter=a>\nx\n</parameter>\n<parameter=more>\n1\n</parameter>\n",
            {"a": "x", "more": 1},
        ),
    ],
)
def test_closing_tags_may_be_left_out(text, expected):
    assert parse_tool_call(text, [tool({"a": STR, "b": INT})]) == ("go", expected)


@pytest.mark.parametrize(
    ("text", "closed", "begun"),
    [
        ("<function=go", True, None),  # no call of a tool: there is nothing to wait for
        ("<function=fly>\n", True, None),
        ("<function=go>\n", False, {}),
        ("<function=go>\n<parameter=a>\ndo", False, {}),
        ("<function=go>\n<parameter=a>\ndoor\n</parameter>\n", False, {"a": "door"}),
        (
            "<function=go>\n<parameter=a>\ndoor\n</parameter>\n<parameter=b>\n1",
            False,
            {"a": "door"},
        ),
        ("<function=go>\n<parameter=a>\ndoor\n</parameter>\n</func", False, {}),
        ("<function=go>\n</function>\n", True, {}),
        (f"<function=go>\n<parameter=a>\n{CALL.removesuffix('</tool_call>')}", False, {}),
    ],
)
def test_what_is_certain_of_a_cut_call(text, closed, begun):
    tools = [tool({"a": STR, "b": INT})]
    assert is_closed(text, tools) is closed
    assert begun_tool_call(text, tools) == (None if begun is None else ("go", begun))


TAGS = ["</parameter>", "</function>", "</tool_call>", "<tool_call>", "<function=go>", CALL]
TEXT = st.lists(
    st.sampled_from([*TAGS, "None", "null", "true", "1", "\n", " ", '"', "'", "<", "["])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    max_size=6,
).map("".join)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OF_KIND = {
    "string": TEXT,
    "integer": st.integers(),
    "number": NUMBERS,
    "boolean": st.booleans(),
    "null": st.none(),
    "array": st.lists(VALUES, max_size=3),
    "object": st.dictionaries(TEXT, VALUES, max_size=3),
}


@st.composite
def typed(draw):
    """A schema, and a value that it admits and that cannot be taken for another one's text."""
    kind = draw(st.sampled_from([*OF_KIND]))
    value = draw(OF_KIND[kind])
    others = draw(st.lists(st.sampled_from([*OF_KIND]), max_size=2))
    if kind == "string":  # a text among other kinds may look like one of theirs
        others = [one for one in others if one == "null"]
        assume(not others or value not in ("None", "null"))
    kinds = [one for one in others if one != "string"]
    kinds.insert(draw(st.integers(0, len(kinds))) if kind != "string" else 0, kind)
    if "string" in others:
        kinds.append("string")
    kinds = [*dict.fromkeys(kinds)]
    schema = draw(
        st.sampled_from(
            [
                {"type": kinds if len(kinds) > 1 else kind},
                {"anyOf": [{"type": one} for one in kinds]},
                {
                    "oneOf": [
                        {"type": one} for one in kinds if one != "integer" or "number" not in kinds
                    ]
                },
                {"allOf": [{"anyOf": [{"type": one} for one in kinds]}]},
                {"$ref": "#/$defs/T"},
                {"const": value},
                {"enum": [value]},
            ]
        )
    )
    return schema, {"anyOf": [{"type": one} for one in kinds]}, value


def as_the_template_writes(value):
    """TRL's copies: `tojson` of a mapping or a list, `| string` of all else."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


@settings(max_examples=300)
@given(one=typed(), other=typed(), python=st.booleans())
def test_a_value_comes_back_from_what_the_template_writes(one, other, python):
    schemas, values, parts = {}, {}, []
    for key, (schema, defined, value) in (("a", one), ("b", other)):
        schemas[key] = json.loads(json.dumps(schema).replace("/T", f"/{key}"))
        DEFINED[key] = defined
        values[key] = value
        is_list = isinstance(value, dict | list)
        # Where no text is expected, Python's notation says the same.
        says = repr(value) if is_list and python else as_the_template_writes(value)
        parts.append(f"<parameter={key}>\n{says}\n</parameter>\n")
        jsonschema.Draft202012Validator({**schemas[key], "$defs": DEFINED}).validate(value)
    written = f"\n<function=go>\n{''.join(parts)}</function>\n"
    found = parse_tool_call(written, [tool(schemas, **{"$defs": DEFINED})])
    assert found == ("go", values)
    assert is_closed(written, [tool(schemas, **{"$defs": DEFINED})])
    assert json.loads(json.dumps(found[1], ensure_ascii=False)) == values


DEFINED = {}


@settings(max_examples=200)
@given(
    text=st.lists(
        st.sampled_from([*TAGS, "<parameter=a>", "<parameter=x>", "\n"]) | st.text(max_size=3)
    ).map("".join),
    schema=st.recursive(
        st.none() | st.booleans() | st.text(max_size=3) | st.just({"$ref": "#"}),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["anyOf", "allOf", "oneOf", "type", "enum", "const", "$ref", "items"]
                ),
                inner,
            )
        ),
        max_leaves=8,
    ),
)
def test_anything_is_read_without_a_defect(text, schema):
    odd = {"type": "function", "function": {"name": "go", "parameters": schema}}
    for tools in ([odd], [tool({"a": schema})]):
        for whole in (text, f"<function=go>{text}"):
            parse_tool_call(whole, tools)
            is_closed(whole, tools)
            begun_tool_call(whole, tools)


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


def test_values_are_as_deep_as_a_client_can_bear():
    assert read(ARR, json.dumps(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    too_deep = json.dumps(nested(MAX_DEPTH + 1))
    assert read(ARR, too_deep) == too_deep


@pytest.fixture(scope="module")
def tokens(checkpoint):
    tokenizer = Tokenizer(checkpoint("base"))
    return tokenizer, vocabulary(tokenizer, 512, (tokenizer.special.turn_end,))


def allows(constraint, token):
    is_allowed = np.isfinite(constraint.allow(np.zeros(512, np.float32))[token])
    constraint.take(token)
    return bool(is_allowed)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"anyOf": [STR, NONE]}, ["x", "null", "5"], []),
        ({"anyOf": [{"enum": ["auto", "a b"]}, INT]}, ["auto", "a b", "5"], ["slow", "true"]),
        ({"anyOf": [INT, NONE]}, ["5", "null"], ["x", "None"]),
        ({"type": ["boolean", "null"]}, ["true", "null"], ["True", "x"]),
        ({"type": "integer", "nullable": True, "minimum": 3}, ["3", "null"], ["2"]),
        ({"anyOf": [INT, NONE], "minimum": 3}, ["3", "null"], ["2"]),
        ({"allOf": [INT, {"minimum": 3}]}, ["3"], ["2"]),
        ({"enum": ["on", 1, True, None]}, ["on", "1", "true", "null"], ["off", '"on"']),
        ({"const": "a"}, ["a"], ["b"]),
        ({"$ref": "#/$defs/Speed"}, ["1"], ["3"]),
        ({}, ["x", "1"], []),
    ],
)
def test_a_forced_call_is_read_as_its_schema_has_it(tokens, schema, right, wrong):
    tokenizer, known = tokens
    tools = [tool({"a": schema}, required=["a"])]
    grammar = grammar_of_lark("tools", tool_call_lark(tools))
    for text in [*right, *wrong]:
        call = f"\n<function=go>\n<parameter=a>\n{text}\n</parameter>\n</function>\n"
        special = tokenizer.special
        ids = [special.tool_call, *tokenizer.encode_as_text(call), special.tool_call_end]
        constraint = Constraint(known, grammar)
        is_allowed = all(allows(constraint, one) for one in ids)
        assert is_allowed is (text in right), text
        if is_allowed:
            found = parse_tool_call(call, tools)
            if "nullable" not in schema:  # which is OpenAPI's word
                jsonschema.validate(found[1], tools[0]["function"]["parameters"])


def test_marks_that_are_not_called_special_structure_a_call_all_the_same(checkpoint, tmp_path):
    """As in Qwen's tokenizers: `<tool_call>` and `<think>` are added, and not special."""
    whole = json.loads((checkpoint("base") / "tokenizer.json").read_text())
    for added in whole["added_tokens"]:
        added["special"] = added["content"] in ("<s>", "</s>", "<|im_end|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    tokenizer = Tokenizer(tmp_path)
    special = tokenizer.special
    known = vocabulary(tokenizer, 512, (special.turn_end,))
    grammar = grammar_of_lark("tools", tool_call_lark([tool({"a": STR}, required=["a"])]))
    call = "\n<function=go>\n<parameter=a>\n<think> is a tag\n</parameter>\n</function>\n"
    constraint = Constraint(known, grammar)
    ids = [special.tool_call, *tokenizer.encode_as_text(call), special.tool_call_end]
    assert all(allows(constraint, token) for token in ids)
    constraint = Constraint(known, grammar_of_choice(["<think>"]))
    assert all(allows(constraint, token) for token in tokenizer.encode_as_text("<think>"))
