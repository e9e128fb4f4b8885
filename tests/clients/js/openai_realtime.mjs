import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import net from "node:net";

// It always wants TLS: a plain connection to this machine is an option of its WebSocket.
const [model, ask] = process.argv.slice(2);
const client = new OpenAI();
const { hostname, port } = new URL(client.baseURL);
const options = { createConnection: () => net.connect(Number(port), hostname) };
const realtime = new OpenAIRealtimeWS({ model, options }, client);
let text = "";
realtime.on("error", (error) => { console.error(error); process.exit(1); });
realtime.on("session.created", () => {
  realtime.send({ type: "conversation.item.create", item: { type: "message", role: "user",
    content: [{ type: "input_text", text: ask }] } });
  realtime.send({ type: "response.create" });
});
realtime.on("response.output_text.delta", (event) => { text += event.delta; });
realtime.on("response.done", () => { console.log(text); realtime.close(); });
