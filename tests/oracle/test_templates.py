"""The family's chat templates, as TRL ships them, rendered by the runtime and by transformers."""

from __future__ import annotations

import importlib.metadata
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.model.prompt import PROBE, PROBE_TOOLS, ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import OWN_TOKENS, Tokenizer
from edge.session.live_prompt import LivePrompt
from edge.session.turn import Message, Question

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NAMES = [
    f"nemotron_3{model}{kind}.jinja"
    for model in ("_nano", "_super", "_ultra", "_5_lightning")
    for kind in ("", "_training")
]
WORDS = st.sampled_from(
    ["", " ", "Go.", "two\nlines ", "é <b>", '"\\', "<think>\nhm</think>ok", "1"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=5,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"name": st.just("go"), "arguments": st.dictionaries(WORDS, VALUES, max_size=3)}
    ).map(lambda function: {"type": "function", "function": function}),
    min_size=1,
    max_size=2,
)
ASSISTANT = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": WORDS},
    optional={"reasoning_content": WORDS, "tool_calls": CALLS},
)
OTHERS = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "tool"]),
    WORDS,
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"name": st.just("go")},
        optional={
            "description": WORDS,
            "parameters": st.fixed_dictionaries(
                {"type": st.just("object")},
                optional={
                    "properties": st.dictionaries(
                        st.sampled_from(["to", "by"]),
                        st.dictionaries(
                            st.sampled_from(["type", "enum", "items", "default"]), VALUES
                        ),
                        max_size=2,
                    ),
                    "required": st.just(["to"]),
                },
            ),
        },
    ).map(lambda function: {"type": "function", "function": function}),
    max_size=2,
)


@pytest.fixture(scope="module", params=NAMES)
def written(request, tmp_path_factory):
    """A template's folder and its text."""
    if os.environ.get("CI") != "true":  # in CI an absent oracle is a failure
        for name in ("trl", "transformers"):
            try:
                importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                pytest.skip(f"needs {name}: make .venv/.oracle")
    # TRL itself is not imported: it would want to train.
    package = importlib.metadata.distribution("trl")
    text = package.locate_file(f"trl/chat_templates/{request.param}").read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("template")
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return folder, text


def by_transformers(text, messages, tools, **flags):
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation = json.loads(json.dumps(messages))
    return render_jinja_template([conversation], tools or None, chat_template=text, **flags)[0][0]


def test_a_familys_template_passes_the_probe(written):
    ChatTemplate(written[0]).probe()


@pytest.mark.parametrize("thinking", [False, True])
def test_the_probe_is_rendered_as_transformers_renders_it(written, thinking):
    folder, text = written
    got = ChatTemplate(folder).render(PROBE, thinking=thinking, tools=PROBE_TOOLS)
    assert got == by_transformers(
        text, PROBE, PROBE_TOOLS, enable_thinking=thinking, add_generation_prompt=True
    )


@settings(max_examples=30)
@given(
    first=st.sampled_from([[], [{"role": "system", "content": "Be brief."}]]),
    rest=st.lists(ASSISTANT | OTHERS, max_size=6),
    tools=TOOLS,
    thinking=st.booleans(),
)
def test_any_conversation_is_rendered_as_transformers_renders_it(
    written, first, rest, tools, thinking
):
    folder, text = written
    messages = [*first, {"role": "user", "content": "Begin."}, *rest]
    got = ChatTemplate(folder).render(messages, thinking=thinking, tools=tools)
    assert got == by_transformers(
        text, messages, tools, enable_thinking=thinking, add_generation_prompt=True
    )


@pytest.fixture(scope="module")
def both(checkpoint):
    """The runtime's prompts and transformers' tokenizer, of one checkpoint."""
    if os.environ.get("CI") != "true":  # in CI an absent oracle is a failure
        pytest.importorskip("transformers", reason="needs transformers: make .venv/.oracle")
    from transformers import PreTrainedTokenizerFast

    folder = checkpoint("base")
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )
    return LivePrompt(Tokenizer(folder), ChatTemplate(folder), ""), theirs


def ids_of_both(both, texts, **settings):
    prompt, theirs = both
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), texts, strict=True)
    ]
    said = tuple(Message(one["role"], one["content"]) for one in messages)
    question = Question(said, Sampling(), 8)
    ours = [*prompt.anchor().tolist(), *prompt.question(question, after_media=False).tolist()]
    whole = theirs.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, **settings
    )
    return ours, list(whole["input_ids"])


@settings(max_examples=150)
@given(texts=st.lists(st.text(max_size=20), min_size=3, max_size=3))
def test_ordinary_texts_have_transformers_tokens(both, texts):
    if any(name in text for text in texts for name in OWN_TOKENS):
        return
    ours, theirs = ids_of_both(both, texts)
    assert ours == theirs


SPELLED = st.lists(st.sampled_from([*OWN_TOKENS, "</s>", "[INST]"]) | st.text(max_size=3)).map(
    "".join
)


@settings(max_examples=150)
@given(texts=st.lists(SPELLED, min_size=3, max_size=3))
def test_other_texts_say_what_transformers_says_of_them(both, texts):
    """transformers encodes what spells a token by itself, so its text is cut elsewhere."""
    tokenizer = both[0].tokenizer
    if "<think>" in texts[1]:  # theirs shows the template the mark, which looks for a thought
        return
    ours, theirs = ids_of_both(both, texts, sanitize_control_tokens=True)
    assert tokenizer.decode(ours, special=True) == tokenizer.decode(theirs, special=True)
    control = tokenizer.control_tokens.ids
    assert [i for i in ours if i in control] == [i for i in theirs if i in control]
