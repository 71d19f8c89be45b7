"use strict";

// Requests to the server, and the stream of an answer.

const GONE = "the server does not answer";

class ServerGone extends Error {
  constructor() {
    super(GONE);
  }
}

function headers() {
  const key = at("key").value.trim();
  const found = { "Content-Type": "application/json" };
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

// A Response, or ServerGone.
async function request(path, options = {}) {
  try {
    return await fetch(path, { headers: headers(), ...options });
  } catch (e) {
    throw e.name === "AbortError" ? e : new ServerGone();
  }
}

// What the server says of an answer without success.
async function failure(response) {
  if (response.status === 401) at("key-field").hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

// Yields {comment} and {data} of a stream, until its last event.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((e) => {
      throw e.name === "AbortError" ? e : new ServerGone();
    });
    if (done) throw new ServerGone(); // without the event that ends an answer
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block === "data: [DONE]") return;
      if (block.startsWith(":")) yield { comment: block.slice(1).trim() };
      else if (block.startsWith("data: ")) yield { data: JSON.parse(block.slice(6)) };
    }
  }
}

// Yields what happens to a chat: {share} of the prompt that is read, {held}, the server's id of the
// conversation, {thinks}, {piece} of the text, {took} as figures() has it.
async function* answerTo(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw new Error(await failure(response));
  for await (const { comment, data } of events(response)) {
    if (comment !== undefined) {
      const read = comment.match(/^prefill (\d+)\/(\d+)$/);
      if (read) yield { share: Number(read[1]) / Number(read[2]) };
      const held = comment.match(/^conversation (\w+)$/);
      if (held) yield { held: held[1] };
      continue;
    }
    if (data.error) throw new Error(data.error.message);
    const delta = data.choices[0]?.delta;
    if (delta?.reasoning_content) yield { thinks: true };
    if (delta?.content) yield { piece: delta.content };
    if (data.usage) yield { took: data.usage.snapkv };
  }
}
