import { Agent, run, tool } from "@openai/agents";
import { z } from "zod";
const [model, ask] = process.argv.slice(2);
const first = await run(new Agent({ name: "robot", instructions: "Answer.", model }), ask);
const drive = tool({ name: "drive", description: "Drive.",
  parameters: z.object({ direction: z.enum(["left", "right"]) }),
  execute: async () => "done" });
const driver = new Agent({ name: "driver", model, tools: [drive],
  modelSettings: { toolChoice: "required" }, toolUseBehavior: "stop_on_first_tool" });
const driven = await run(driver, "Drive on.");
const eye = new Agent({ name: "eye", model, outputType: z.object({ color: z.enum(["red", "green", "blue", "yellow"]) }) });
const seen = await run(eye, "What color is the square?");
let text = "";
const stream = await run(new Agent({ name: "robot", model }), ask, { stream: true });
for await (const part of stream.toTextStream()) text += part;
console.log(JSON.stringify([first.finalOutput, driven.finalOutput, seen.finalOutput, text]));
process.exit(0);
