"""What Prometheus scrapes, whatever the cameras and microphones are called."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from edge.config import Camera
from edge.serve.metrics import Metrics
from edge.session.sense import COUNTED
from edge.session.turn import Status

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)


def scraped(status: Status) -> tuple[set[str], dict[tuple[str, frozenset[tuple[str, str]]], float]]:
    """The names and the samples of a valid exposition, each of which is there once."""
    text = Metrics(lambda: status).text().decode()
    families = list(text_string_to_metric_families(text))
    names = Counter(family.name for family in families)
    assert max(names.values()) == 1, names.most_common(1)
    samples = [
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for family in families
        for sample in family.samples
    ]
    assert len(dict(samples)) == len(samples)
    return set(names), dict(samples)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
@example(["clients", "requests", "connections", "process"])  # would be the service's own
@example(["front", "front_dropped", "front_dropped_total", "front_created"])
@example(["a_total", "a_created", "a_bucket", "le"])
def test_a_name_is_a_label_and_never_part_of_a_metrics_name(names):
    for name in names:
        assert msgspec.convert({"name": name, "source": "x"}, Camera).name == name
    nobody, _ = scraped(Status(True, "m", 1, 2, {"answers": 3}))
    senses = {name: {what: i + n for n, what in enumerate(COUNTED)} for i, name in enumerate(names)}
    flat = {f"{name}_{what}": n for name, sense in senses.items() for what, n in sense.items()}
    families, samples = scraped(Status(True, "m", 1, 2, {"answers": 3, **flat}, senses=senses))
    assert families == nobody
    for i, name in enumerate(names):
        for n, what in enumerate(COUNTED):
            key = (f"edge_source_{what}_total", frozenset({("source", name)}))
            assert samples[key] == i + n
    assert samples["edge_answers_total", frozenset()] == 3


@pytest.mark.parametrize("name", ["", "Front", "1st", "a b", "a-b", "a\n", "ä", "x" * 33, 'a"'])
def test_no_other_names_can_be_configured(name):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": name, "source": "x"}, Camera)
