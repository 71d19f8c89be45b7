"use strict";

// All text of documents and of the model goes through textContent, never through HTML.

const MAX_FILE = 64 * 1024 * 1024;
const at = (id) => document.getElementById(id);

let messages = [];
let library = ""; // the document of the server that they are about
let documentText = "";
let documentName = "";
let running = null;

function headers() {
  const key = at("key").value.trim();
  const result = { "Content-Type": "application/json" };
  if (key) result.Authorization = `Bearer ${key}`;
  return result;
}

function size(bytes) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (bytes < 1024) return `${unit === "B" ? bytes : bytes.toFixed(1)} ${unit}`;
    bytes /= 1024;
  }
  return `${bytes.toFixed(1)} GiB`;
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}

function show(text, isError = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

function setDocument(name, text) {
  documentName = name;
  documentText = text;
  at("drop").classList.toggle("has-document", text !== "");
  at("remove").hidden = text === "";
  at("document-name").textContent =
    text === "" ? "Drop a text file here, or" : `${name}, ${text.length.toLocaleString()} characters`;
}

async function readFile(file) {
  if (!file) return;
  if (file.size > MAX_FILE) {
    show(`${file.name} is larger than ${size(MAX_FILE)}`, true);
    return;
  }
  try {
    const { text, warning } = textOf(new Uint8Array(await file.arrayBuffer()), file.name);
    at("pasted").hidden = true;
    setDocument(file.name, text);
    show(warning);
  } catch (e) {
    show(e.message, true);
  }
}

function addTurn(role, text, attached) {
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  const body = document.createElement("div");
  body.className = "text";
  body.textContent = text;
  if (attached) {
    const note = document.createElement("div");
    note.className = "attached";
    note.textContent = attached;
    turn.append(note);
  }
  turn.append(body);
  at("chat").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

function addFigures(turn, text) {
  const line = document.createElement("p");
  line.className = "figures";
  line.textContent = text;
  turn.append(line);
  line.scrollIntoView({ block: "end" });
}

function figures(usage) {
  const s = usage.snapkv;
  const parts = [];
  if (s.n_kept < s.n_prompt) {
    parts.push(
      `kept ${s.n_kept.toLocaleString()} of ${s.n_prompt.toLocaleString()} tokens (${percent(s.n_kept / s.n_prompt)})`,
      `KV cache ${size(s.bytes_kv - s.bytes_decode_cells)} instead of ${size(s.bytes_kv_full)}, and ${size(s.bytes_decode_cells)} of room`,
      `${percent(s.coverage)} of the attention covered`,
    );
  } else {
    parts.push(`${s.n_prompt.toLocaleString()} tokens, all kept`, `KV cache ${size(s.bytes_kv)}`);
  }
  parts.push(`first token after ${s.seconds_prefill.toFixed(1)} s`);
  return parts.join(" · ");
}

// Yields the events of a stream: {comment} or {data}.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith(":")) yield { comment: block.slice(1).trim() };
      else if (block.startsWith("data: ")) yield { data: block.slice(6) };
    }
  }
}

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

async function ask(question) {
  const hasDocument = documentText !== "";
  if (messages.length > 0 && at("library").value !== library) clear();
  library = at("library").value;
  const content = hasDocument ? `${documentText}\n\n${question}` : question;
  const attached = hasDocument ? documentName : "";
  const about = messages.length === 0 && library !== "" ? at("library").selectedOptions[0].text : "";
  messages.push({ role: "user", content });
  addTurn("user", question, [about, attached].filter(Boolean).join(" · "));
  const turn = addTurn("assistant", "");
  const text = turn.querySelector(".text");
  setDocument("", "");
  at("pasted").value = "";
  at("pasted").hidden = true;

  running = new AbortController();
  setBusy(true);
  show("waiting for the model");
  let usage = null;
  let error = "";
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      signal: running.signal,
      body: JSON.stringify({
        messages,
        stream: true,
        stream_options: { include_usage: true },
        temperature: 0.2,
        ...(library !== "" && { document: library }),
      }),
    });
    if (!response.ok) {
      if (response.status === 401) at("key-field").hidden = false;
      throw new Error(await failure(response));
    }
    for await (const event of events(response)) {
      if (event.comment) {
        const progress = event.comment.match(/^prefill (\d+)\/(\d+)$/);
        if (progress) showProgress(Number(progress[1]) / Number(progress[2]));
        continue;
      }
      if (event.data === "[DONE]") break;
      const chunk = JSON.parse(event.data);
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) usage = chunk.usage;
      if (chunk.choices[0]?.delta?.reasoning_content) show("the model is thinking");
      const piece = chunk.choices[0]?.delta?.content;
      if (piece) {
        showProgress(null);
        show("");
        text.append(document.createTextNode(piece));
        at("chat").lastElementChild.scrollIntoView({ block: "end" });
      }
    }
  } catch (e) {
    error = e.name === "AbortError" ? "stopped" : e.message;
  }
  running = null;
  setBusy(false);
  showProgress(null);
  if (text.textContent === "" && error !== "") {
    // nothing was answered: the question can be sent again
    messages.pop();
    turn.previousElementSibling.remove();
    turn.remove();
    at("question").value = question;
    if (hasDocument) setDocument(attached, content.slice(0, content.length - question.length - 2));
  } else {
    messages.push({ role: "assistant", content: text.textContent });
    if (usage) addFigures(turn, figures(usage));
  }
  show(error, error !== "" && error !== "stopped");
  at("question").focus();
}

function setBusy(busy) {
  at("send").hidden = busy;
  at("stop").hidden = !busy;
  at("reset").disabled = busy;
  at("library").disabled = busy;
}

function showProgress(share) {
  at("progress").hidden = share === null;
  at("progress").value = share ?? 0;
  if (share !== null) show(`reading, ${percent(share)}`);
}

function clear() {
  messages = [];
  at("chat").replaceChildren();
  show("");
}

// What the server has read before it was started. A conversation is about one of them from its beginning.
async function listLibrary() {
  const response = await fetch("/v1/documents", { headers: headers() });
  if (!response.ok) {
    show(await failure(response), true);
    return;
  }
  const documents = (await response.json()).data;
  // the list may come again, with another key, in the middle of a chat: what is chosen stays, even if the
  // server no longer has it, so that no question goes without its document unnoticed
  const chosen = at("library").value;
  const options = documents.map(
    (d) => new Option(`${d.id}, ${d.n_tokens.toLocaleString()} tokens`, d.id),
  );
  if (chosen !== "" && !documents.some((d) => d.id === chosen)) {
    options.push(new Option(`${chosen}, no longer there`, chosen));
  }
  at("library-field").hidden = options.length === 0;
  at("library").replaceChildren(new Option("none", ""), ...options);
  at("library").value = chosen;
}

async function start() {
  for (let waited = false; ; waited = true) {
    const health = await fetch("/health").catch(() => null);
    if (health?.ok) {
      if (waited) show("");
      break;
    }
    show("the model is loading");
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  const response = await fetch("/v1/models", { headers: headers() });
  if (response.status === 401) {
    at("key-field").hidden = false;
    // a person who already types goes on where they are
    if (document.activeElement === document.body) at("key").focus();
    return;
  }
  at("model").textContent = (await response.json()).data[0].id;
  await listLibrary();
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (question === "" || running) return;
  at("question").value = "";
  if (!at("pasted").hidden && at("pasted").value.trim() !== "") {
    setDocument("pasted text", at("pasted").value);
  }
  ask(question);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("reset").addEventListener("click", () => {
  clear();
  setDocument("", "");
  at("question").focus();
});
at("library").addEventListener("change", () => {
  const changes = messages.length > 0 && at("library").value !== library;
  show(changes ? "a conversation is about one document: the next question starts a new chat" : "");
});
at("remove").addEventListener("click", () => setDocument("", ""));
at("key").addEventListener("change", start);
at("file").addEventListener("change", (event) => {
  readFile(event.target.files[0]);
  event.target.value = "";
});
at("paste").addEventListener("click", () => {
  at("pasted").hidden = !at("pasted").hidden;
  if (!at("pasted").hidden) at("pasted").focus();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  readFile(event.dataTransfer.files[0]);
});
start();
