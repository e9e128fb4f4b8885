"""The tokenizer and chat template of a tiny checkpoint: same rules and special ids as the real one.

The tokenizer is a byte-level BPE in tokenizer.json form, with the published special tokens at the
published ids. The template follows the published prompt format; it is executed from the
checkpoint by the runtime, so a real checkpoint brings its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "<|im_start|>", "<|im_end|>", "<think>",
    "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<image>",
    "<img>", "</img>", *(f"<SPECIAL_{i}>" for i in range(21, 27)), "<so_embedding>", "<so_start>",
    "<so_end>", "<SPECIAL_30>", "<SPECIAL_31>",
]  # fmt: skip

# Splits words, digits one by one, punctuation and white space, as the family's tokenizer does.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CORPUS = """\
Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.49 seconds: the camera sees a red circle.
What do you see? Where is the circle? How many circles are there? What color is the square?
user assistant system describe the picture and the sound that you heard in the last seconds.
There is a blue square on the left and a green triangle on the right. It moves up and down.
The person said hello. Which word was said? What changed while the bell was ringing? Nothing.
"""

CHAT_TEMPLATE = """\
{%- set thinking = enable_thinking if enable_thinking is defined else true -%}
{%- set truncate = truncate_history_thinking if truncate_history_thinking is defined else true -%}
{%- set ns = namespace(last_user=-1, system="", first=0) -%}
{%- if messages and messages[0].role == "system" -%}
  {%- set ns.system = messages[0].content -%}
  {%- set ns.first = 1 -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == "user" -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
<|im_start|>system
{{ ns.system }}
{%- if tools -%}
  {{- "\\n\\n" if ns.system else "" -}}
  # Tools

You can call these functions:
<tools>
  {%- for tool in tools %}
{{ tool | tojson }}
  {%- endfor %}
</tools>
{%- endif -%}
<|im_end|>
{% for message in messages[ns.first:] -%}
  {%- set index = loop.index0 + ns.first -%}
  {%- if message.role == "system" -%}
    {{- raise_exception("a system message must come first") -}}
  {%- elif message.role == "assistant" -%}
    {%- set past = truncate and index < ns.last_user -%}
    {{- "<|im_start|>assistant\\n" -}}
    {%- if message.reasoning_content and not past -%}
      {{- "<think>\\n" + message.reasoning_content + "\\n</think>\\n" -}}
    {%- elif "<think>" not in message.content -%}
      {{- "<think></think>" -}}
    {%- endif -%}
    {{- message.content -}}
    {%- for call in message.tool_calls or [] -%}
      {{- "<tool_call>\\n<function=" + call.function.name + ">\\n" -}}
      {%- for name, value in call.function.arguments.items() -%}
        {{- "<parameter=" + name + ">\\n" -}}
        {{- value if value is string else value | tojson -}}
        {{- "\\n</parameter>\\n" -}}
      {%- endfor -%}
      {{- "</function>\\n</tool_call>\\n" -}}
    {%- endfor -%}
    {{- "<|im_end|>\\n" -}}
  {%- elif message.role == "tool" -%}
    {{- "<|im_start|>user\\n<tool_response>\\n" + message.content -}}
    {{- "\\n</tool_response>\\n<|im_end|>\\n" -}}
  {%- else -%}
    {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|im_start|>assistant\\n" -}}
  {{- "<think>\\n" if thinking else "<think></think>" -}}
{%- endif -%}
"""


def build_tokenizer(vocab_size: int, corpus: str = CORPUS) -> Tokenizer:
    """A byte-level BPE whose first ids are the special tokens, then 256 bytes, then merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.splitlines(keepends=True), trainer)
    return tokenizer


def write_tokenizer(out: Path, vocab_size: int, corpus: str = CORPUS) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `out`."""
    build_tokenizer(vocab_size, corpus).save(str(out / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, **roles}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (out / "special_tokens_map.json").write_text(json.dumps(roles, indent=1))
