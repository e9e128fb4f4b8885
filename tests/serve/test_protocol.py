"""Every event, found by walking the types: it round-trips, and its schema describes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect
from openai.types import realtime
from serve.traffic import validator
from write_schemas import FOLDER, schema_text

from edge.serve import playback, protocol, server_events, trigger_events
from edge.serve.schema import AnyClientEvent, AnyServerEvent, event_schemas

CLIENT, SERVER = get_args(AnyClientEvent), get_args(AnyServerEvent)
SIDES = {"client_events": AnyClientEvent, "server_events": AnyServerEvent}


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """JSON values of one of the types that events are made of."""
    if isinstance(kind, inspect.Metadata):
        allowed = (kind.extra_json_schema or {}).get("enum")  # of a field that is refused
        return values(kind.type) if allowed is None else st.sampled_from(allowed)
    if isinstance(kind, inspect.StructType):
        return _objects(kind)
    if isinstance(kind, inspect.UnionType):
        return st.one_of([values(t) for t in kind.types])
    if isinstance(kind, inspect.StrType):
        if kind.pattern is not None:
            return st.from_regex(kind.pattern, fullmatch=True)
        texts = st.text(min_size=kind.min_length or 0, max_size=min(kind.max_length or 8, 8))
        return texts.filter(lambda text: text < "\ud800" or text.isprintable())
    if isinstance(kind, inspect.IntType):
        return st.integers(kind.ge if kind.ge is not None else -99, min(kind.le or 99, 1 << 53))
    if isinstance(kind, inspect.FloatType):
        least = max(kind.ge or 0.0, (kind.gt or 0.0) + 0.125)
        return st.floats(least, min(kind.le or 99.0, 99.0), width=16)
    if isinstance(kind, inspect.BoolType):
        return st.booleans()
    if isinstance(kind, inspect.NoneType):
        return st.none()
    if isinstance(kind, inspect.LiteralType):
        return st.sampled_from(kind.values)
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        n_least = kind.min_length or 0
        return st.lists(values(kind.item_type), min_size=n_least, max_size=n_least + 2)
    if isinstance(kind, inspect.TupleType):
        return st.tuples(*map(values, kind.item_types)).map(list)
    if isinstance(kind, inspect.DictType):
        return st.dictionaries(st.text(max_size=3), st.integers() | st.none(), max_size=2)
    if isinstance(kind, inspect.AnyType):  # nothing is read of it
        return st.none() | st.booleans() | st.integers(-99, 99) | st.lists(st.text(max_size=3))
    raise AssertionError(f"events have learned {kind}: teach it to this test")


def _objects(kind: inspect.StructType) -> st.SearchStrategy[dict[str, Any]]:
    required = {f.encode_name: values(f.type) for f in kind.fields if f.required}
    optional = {f.encode_name: values(f.type) for f in kind.fields if not f.required}
    tag = {} if kind.tag is None else {kind.tag_field: st.just(kind.tag)}
    return st.fixed_dictionaries({**tag, **required}, optional=optional)


@pytest.mark.hypothesis  # make fuzz finds it by this
@pytest.mark.parametrize("event", [*CLIENT, *SERVER], ids=lambda event: event.__name__)
def test_every_event_round_trips_and_its_schema_describes_it(event):
    name = "client_events" if event in CLIENT else "server_events"
    side = SIDES[name]

    @settings(max_examples=25, deadline=None)
    @given(values(inspect.type_info(event)))
    def check(value):
        first = msgspec.json.decode(msgspec.json.encode(value), type=side)
        assert type(first) is event
        written = msgspec.json.encode(first)
        assert msgspec.json.decode(written, type=side) == first
        validator(name).validate(msgspec.json.decode(written))

    check()


def test_no_event_of_the_modules_is_left_out():
    for module in (protocol, server_events, trigger_events, playback):
        for thing in vars(module).values():
            if not (isinstance(thing, type) and issubclass(thing, msgspec.Struct)):
                continue
            tag = thing.__struct_config__.tag
            if thing.__module__ == module.__name__ and isinstance(tag, str) and "." in tag:
                assert thing in (*CLIENT, *SERVER), thing


def test_every_event_and_field_is_documented():
    for event in (*CLIENT, *SERVER):
        assert event.__doc__, event


def test_what_is_not_ours_is_called_as_openai_calls_it():
    known = _known()
    for event in (*CLIENT, *SERVER):
        tag = event.__struct_config__.tag
        assert tag.startswith("edge.") or tag in known, tag


def _known() -> set[str]:
    """The event types that OpenAI's SDK knows."""
    text = "".join(path.read_text() for path in Path(realtime.__path__[0]).glob("*.py"))
    return set(re.findall(r'Literal\["([a-z_.]+)"\]', text))


def test_the_schemas_in_the_documentation_are_those_of_the_types():
    for name, schema in event_schemas().items():
        assert (FOLDER / f"{name}.json").read_text() == schema_text(schema), (
            "run scripts/write_schemas.py"
        )


def test_a_schema_refuses_what_is_no_event():
    for wrong in ({"type": "nonsense"}, {"type": "response.cancel", "response_id": 3}, [], {}):
        assert not validator("client_events").is_valid(wrong)
