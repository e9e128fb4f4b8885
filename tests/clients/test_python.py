"""Stock Python clients, with the defaults that they have."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
from typing import Any, Literal

import httpx
import openai
import pytest
from PIL import Image, ImageDraw
from pydantic import BaseModel

QUESTION = "How many shapes are there?"
PICTURE_QUESTION = "What color is the circle?"
NUMBERS = {"zero", "one", "two", "three", "none"}


def picture() -> str:
    """A red circle, as a data: URL."""
    image = Image.new("RGB", (128, 128), "black")
    ImageDraw.Draw(image).ellipse((24, 24, 104, 104), fill="red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class Shape(BaseModel):
    """What is asked for as an object."""

    color: Literal["red", "green", "blue", "yellow"]


DRIVE = {
    "type": "function",
    "function": {
        "name": "drive",
        "description": "Drive.",
        "parameters": {
            "type": "object",
            "properties": {"direction": {"type": "string", "enum": ["left", "right"]}},
            "required": ["direction"],
        },
    },
}


# openai


def test_openai_chat(model):
    client = openai.OpenAI()
    ask: list[Any] = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model=model, messages=ask)
    assert whole.choices[0].message.content in NUMBERS
    parts = [*client.chat.completions.create(model=model, messages=ask, stream=True)]
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text in NUMBERS
    assert client.models.retrieve(model).id == client.models.list().data[0].id == model


def test_openai_sees_a_picture(model):
    content = [
        {"type": "text", "text": PICTURE_QUESTION},
        {"type": "image_url", "image_url": {"url": picture(), "detail": "auto"}},
    ]
    done = openai.OpenAI().chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}]
    )
    assert done.choices[0].message.content == "red"


def test_openai_tools_go_round(model):
    client = openai.OpenAI()
    messages: list[Any] = [{"role": "user", "content": "Drive on."}]
    wanted: dict[str, Any] = {"model": model, "tools": [DRIVE]}
    first = client.chat.completions.create(
        messages=messages, tool_choice="required", **wanted
    ).choices[0]
    (call,) = first.message.tool_calls
    assert json.loads(call.function.arguments)["direction"] in ("left", "right")
    messages.append(first.message.model_dump())
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "done"})
    assert client.chat.completions.create(messages=messages, **wanted).choices[0].finish_reason


def test_openai_parses_an_object(model):
    done = openai.OpenAI().chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "What color is the square?"}],
        response_format=Shape,
    )
    assert done.choices[0].message.parsed.color in ("red", "green", "blue", "yellow")


def test_openai_errors(model):
    client = openai.OpenAI(max_retries=0)
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "x"}], temperature=9
        )
    assert wrong.value.param == "temperature"


def test_openai_responses(model):
    client = openai.OpenAI()
    assert client.responses.create(model=model, input=QUESTION).output_text in NUMBERS
    with client.responses.stream(model=model, input=QUESTION) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text in NUMBERS
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    content = [
        {"type": "input_text", "text": PICTURE_QUESTION},
        {"type": "input_image", "image_url": picture(), "detail": "auto"},
    ]
    seen = client.responses.create(model=model, input=[{"role": "user", "content": content}])
    assert seen.output_text == "red"
    parsed = client.responses.parse(
        model=model, input="What color is the square?", text_format=Shape
    )
    assert parsed.output_parsed is not None


def test_openai_responses_call_a_tool(model):
    client = openai.OpenAI()
    tool: Any = {"type": "function", "strict": True, **DRIVE["function"]}
    tool["parameters"] = {**tool["parameters"], "additionalProperties": False}
    first = client.responses.create(
        model=model, input="Drive on.", tools=[tool], tool_choice="required"
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    said: list[Any] = [{"role": "user", "content": "Drive on."}, *first.output]
    said.append({"type": "function_call_output", "call_id": call.call_id, "output": "done"})
    assert client.responses.create(model=model, input=said, tools=[tool]).status == "completed"


def test_openai_realtime(model):
    client = openai.OpenAI()
    url = str(client.base_url).replace("http", "ws", 1)
    client = openai.OpenAI(websocket_base_url=url)
    with client.realtime.connect(model=model) as connection:
        connection.session.update(session={"type": "realtime", "instructions": "Answer."})
        content = [{"type": "input_text", "text": QUESTION}]
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": content}
        )
        connection.response.create()
        text = ""
        for event in connection:
            assert event.type != "error", event
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                break
    assert text in NUMBERS


# The OpenAI Agents SDK: its default asks /v1/responses.


def test_openai_agents(model):
    from agents import Agent, Runner, function_tool

    driven: list[str] = []

    @function_tool
    def drive(direction: Literal["left", "right"]) -> str:
        """Drive."""
        driven.append(direction)
        return "done"

    agent = Agent(name="robot", instructions="Answer.", model=model)
    assert Runner.run_sync(agent, QUESTION).final_output in NUMBERS

    from agents import ModelSettings

    driver = Agent(
        name="driver",
        model=model,
        tools=[drive],
        tool_use_behavior="stop_on_first_tool",
        model_settings=ModelSettings(tool_choice="required"),
    )
    assert Runner.run_sync(driver, "Drive on.").final_output == "done"
    assert driven
    shaped = Agent(name="eye", model=model, output_type=Shape)
    assert isinstance(Runner.run_sync(shaped, "What color is the square?").final_output, Shape)

    async def streamed() -> str:
        run = Runner.run_streamed(agent, QUESTION)
        async for _ in run.stream_events():
            pass
        return str(run.final_output)

    assert asyncio.run(streamed()) in NUMBERS


def test_openai_agents_realtime(model, service):
    from agents.realtime import RealtimeAgent, RealtimeRunner

    async def talk() -> tuple[str, list[str]]:
        agent = RealtimeAgent(name="robot", instructions="Answer in one word.")
        runner = RealtimeRunner(agent)
        url = f"ws://127.0.0.1:{service.port}/v1/realtime?model={model}"
        session = await runner.run(model_config={"url": url, "api_key": "none"})
        errors: list[str] = []
        async with session:
            await session.send_message(QUESTION)
            text = ""
            async for event in session:
                if event.type == "error":
                    errors.append(str(event.error))
                if event.type == "raw_model_event":
                    data = getattr(event.data, "data", None)
                    if isinstance(data, dict) and data.get("type") == "response.output_text.done":
                        return data["text"], errors
        return text, errors

    text, _ = asyncio.run(asyncio.wait_for(talk(), 60))
    assert text in NUMBERS


def test_langchain(model):
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=model)
    assert chat.invoke(QUESTION).content in NUMBERS
    assert "".join(str(part.content) for part in chat.stream(QUESTION)) in NUMBERS
    seen = chat.invoke(
        [
            HumanMessage(
                content=[
                    {"type": "text", "text": PICTURE_QUESTION},
                    {"type": "image_url", "image_url": {"url": picture()}},
                ]
            )
        ]
    )
    assert seen.content == "red"
    bound = chat.bind_tools([DRIVE], tool_choice="required")
    assert bound.invoke("Drive on.").tool_calls[0]["name"] == "drive"
    assert isinstance(chat.with_structured_output(Shape).invoke("What color is it?"), Shape)
    again = ChatOpenAI(model=model, use_responses_api=True).invoke(QUESTION)
    assert again.text in NUMBERS


def test_litellm(model):
    import litellm

    ask = [{"role": "user", "content": QUESTION}]
    done = litellm.completion(model=f"openai/{model}", messages=ask)
    assert done.choices[0].message.content in NUMBERS
    parts = litellm.completion(
        model=f"openai/{model}", messages=ask, stream=True, stream_options={"include_usage": True}
    )
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert text in NUMBERS
    called = litellm.completion(
        model=f"openai/{model}", messages=ask, tools=[DRIVE], tool_choice="required"
    )
    assert called.choices[0].message.tool_calls[0].function.name == "drive"
    answered = litellm.responses(model=f"openai/{model}", input=QUESTION)
    assert answered.output[-1].content[0].text in NUMBERS


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor(model, mode):
    import instructor

    client = instructor.from_openai(openai.OpenAI(), mode=instructor.Mode[mode])
    found = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What color is the square?"}],
        response_model=Shape,
    )
    assert isinstance(found, Shape)


def test_llm(model, service, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: edge\n  model_name: {model}\n  api_base: {service.url}\n"
        "  vision: true\n  supports_tools: true\n  supports_schema: true\n"
    )
    (tmp_path / "circle.png").write_bytes(base64.b64decode(picture().partition(",")[2]))

    def llm(*words: str) -> str:
        command = [sys.executable, "-m", "llm", "-m", "edge", "--key", "none", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert llm(QUESTION) in NUMBERS
    assert llm("--no-stream", QUESTION) in NUMBERS
    assert llm(PICTURE_QUESTION, "-a", str(tmp_path / "circle.png")) == "red"
    shape = json.loads(llm("What color is it?", "--schema", json.dumps(Shape.model_json_schema())))
    assert Shape(**shape)


def test_pipecat_realtime(model, service):
    from pipecat.frames.frames import EndFrame, LLMTextFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.runner import PipelineRunner
    from pipecat.pipeline.task import PipelineParams, PipelineTask
    from pipecat.processors.aggregators.llm_context import LLMContext
    from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.services.openai.realtime.events import SessionProperties
    from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService

    texts: list[str] = []

    class Listener(FrameProcessor):
        async def process_frame(self, frame: Any, direction: Any) -> None:
            await super().process_frame(frame, direction)
            if isinstance(frame, LLMTextFrame):
                texts.append(frame.text)
                if "".join(texts) in NUMBERS:
                    await task.queue_frames([EndFrame()])
            await self.push_frame(frame, direction)

    llm = OpenAIRealtimeLLMService(
        api_key="none",
        base_url=f"ws://127.0.0.1:{service.port}/v1/realtime",
        model=model,
        session_properties=SessionProperties(output_modalities=["text"]),
    )
    context = LLMContext([{"role": "user", "content": QUESTION}])
    pair = LLMContextAggregatorPair(context)
    task = PipelineTask(
        Pipeline([pair.user(), llm, Listener(), pair.assistant()]), params=PipelineParams()
    )

    async def run() -> None:
        from pipecat.frames.frames import LLMRunFrame

        await task.queue_frames([LLMRunFrame()])
        await asyncio.wait_for(PipelineRunner(handle_sigint=False).run(task), 60)

    asyncio.run(run())
    assert "".join(texts) in NUMBERS


# Bodies as web interfaces send them.


def test_open_webui(model, service):
    body = {
        "stream": True,
        "model": model,
        "params": {},
        "messages": [{"role": "user", "content": QUESTION}],
        "files": [],
        "tool_servers": [],
        "features": {"image_generation": False, "code_interpreter": False, "web_search": False},
        "variables": {"{{USER_NAME}}": "A", "{{CURRENT_DATE}}": "2026-11-30"},
        "session_id": "q3iY",
        "chat_id": "0b3b",
        "id": "5d0c",
        "background_tasks": {"title_generation": True, "tags_generation": True},
        "stream_options": {"include_usage": True},
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "repeat_penalty": 1,
        "seed": 0,
        "stop": None,
        "temperature": 0.0,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "user": {"name": "A", "id": "1", "role": "admin"},
    }
    with httpx.stream("POST", f"{service.url}/chat/completions", json=body, trust_env=False) as got:
        assert got.status_code == 200, got.read()
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    parts = [json.loads(line) for line in lines[:-1]]
    text = "".join(p["choices"][0]["delta"].get("content") or "" for p in parts if p["choices"])
    assert text in NUMBERS
    assert parts[-1]["usage"]["total_tokens"] > 0


def test_libre_chat(model, service):
    body = {
        "model": model,
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "user": "66b1",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": QUESTION}], "name": "A"},
        ],
    }
    got = httpx.post(f"{service.url}/chat/completions", json=body, trust_env=False)
    assert got.status_code == 200, got.text
