import { RealtimeAgent, RealtimeSession, OpenAIRealtimeWebSocket, tool } from "@openai/agents/realtime";
import { z } from "zod";
const [model, url, ask] = process.argv.slice(2);
const drive = tool({ name: "drive", description: "Drive.",
  parameters: z.object({ direction: z.string() }), execute: async () => "done" });
const agent = new RealtimeAgent({ name: "robot", instructions: "Answer in one word.", tools: [drive] });
const transport = new OpenAIRealtimeWebSocket({ url, useInsecureApiKey: true });
const session = new RealtimeSession(agent, { transport, model });
const errors = [], seen = {};
let text = "";
session.on("error", (error) => errors.push(error.error?.error?.param ?? String(error)));
transport.on("*", (event) => {
  if (event.type === "session.updated") {
    seen.instructions = event.session.instructions;
    seen.tools = event.session.tools.map((one) => one.name);
  }
  if (event.type === "response.output_text.delta") text += event.delta;
  if (event.type === "response.done") {
    console.log(JSON.stringify([text, seen, errors]));
    process.exit(0);
  }
});
await session.connect({ apiKey: "none", url });
session.sendMessage(ask);
