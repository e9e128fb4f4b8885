// What OpenAI's JavaScript SDK does with a service at process.argv[2]; prints JSON, a line each.
const { OpenAI } = require("openai");

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0 });
const tell = (name, value) => console.log(JSON.stringify({ name, value }));

async function main() {
  const { data } = await client.models.list();
  const model = data[0].id;
  tell("model", (await client.models.retrieve(model)).id);
  await client.models.retrieve("other").catch((error) => tell("missing", [error.status, error.code]));

  const tool = { type: "function", name: "drive", parameters: { type: "object" }, strict: false };
  const response = await client.responses.create({ model, input: "Go.", tools: [tool] });
  tell("output", response.output.map((item) => item.type));
  tell("output_text", response.output_text);

  const stream = client.responses.stream({ model, input: "Go.", tools: [tool] });
  const kinds = [];
  stream.on("event", (event) => kinds.push(event.type));
  const last = await stream.finalResponse();
  tell("kinds", kinds);
  tell("final", last.output.map((item) => item.type));
  const next = await client.responses.create({ model, input: "And?", previous_response_id: last.id });
  tell("next", next.previous_response_id === last.id);

  const chat = { model, messages: [{ role: "user", content: "Go." }], n: 2, logprobs: true };
  const whole = await client.chat.completions.create(chat);
  tell("choices", whole.choices.map((choice) => choice.message.content));
  const runner = client.chat.completions.stream(chat);
  tell("streamed", (await runner.finalChatCompletion()).choices.map((one) => one.message.content));
  await client.responses
    .create({ model, input: "x", background: true })
    .catch((error) => tell("refused", [error.status, error.code, error.param]));
}

main();
