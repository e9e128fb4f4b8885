import OpenAI from "openai";
const [model, ask, see, picture] = process.argv.slice(2);
const client = new OpenAI();
const messages = [{ role: "user", content: ask }];
const whole = await client.chat.completions.create({ model, messages });
let streamed = "";
for await (const part of await client.chat.completions.create({ model, messages, stream: true }))
  streamed += part.choices[0]?.delta?.content ?? "";
const content = [{ type: "text", text: see }, { type: "image_url", image_url: { url: picture } }];
const seen = await client.chat.completions.create({ model, messages: [{ role: "user", content }] });
const answer = await client.responses.create({ model, input: ask });
let delta = "";
for await (const event of await client.responses.create({ model, input: ask, stream: true }))
  if (event.type === "response.output_text.delta") delta += event.delta;
const known = await client.models.retrieve(model);
console.log(JSON.stringify([whole.choices[0].message.content, streamed, answer.output_text, delta,
  seen.choices[0].message.content, known.id]));
