import { generateText, streamText, generateObject, tool } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { z } from "zod";
const [name, ask, see, picture, baseURL] = process.argv.slice(2);
const found = [], shapes = [], colors = [], calls = [];
const openai = createOpenAI();
const compatible = createOpenAICompatible({ name: "edge", baseURL, apiKey: "none",
  supportsStructuredOutputs: true });
for (const model of [openai(name), openai.chat(name), compatible(name)]) {
  found.push((await generateText({ model, prompt: ask })).text);
  let text = "";
  for await (const part of streamText({ model, prompt: ask }).textStream) text += part;
  found.push(text);
  shapes.push((await generateObject({ model, schema: z.object({ color: z.enum(["red", "green", "blue", "yellow"]) }), prompt: ask })).object);
  const content = [{ type: "text", text: see }, { type: "image", image: picture }];
  colors.push((await generateText({ model, messages: [{ role: "user", content }] })).text);
  const drive = tool({ description: "Drive.",
    inputSchema: z.object({ direction: z.enum(["left", "right"]) }) });
  const done = await generateText({ model, prompt: ask, tools: { drive }, toolChoice: "required" });
  calls.push(done.toolCalls[0].toolName);
}
console.log(JSON.stringify([found, shapes, colors, calls]));
