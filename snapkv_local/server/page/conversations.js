"use strict";

// The conversations of this browser. Each goes on by itself, whichever one is shown.
//
// Stored of one: id, title, created, library (the id of a document of the server that it is about), held
// (the server's id of it), and its messages: {role, content, document: {name, text}, about (in words), took}.
// Of this page alone: draft, attachment, pasted and chosen (of the library), for the next question; note, what there is to say; and
// work, while it is answered, and isLocked, until that is stored.

// a browser has six connections to a server, and one has to be left
const MOST_AT_ONCE = 5;
const SAVE_EVERY = 1_000; // milliseconds, of an answer

const conversations = []; // the newest one first
let current = null;
let isKept = true; // whether this browser stores them

function conversation(stored = {}) {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16)).join("");
  const fresh = { id, title: "", created: Date.now(), library: "", held: "", messages: [] };
  const next = { draft: "", attachment: null, pasted: null, chosen: stored.library ?? "" };
  return { ...fresh, ...stored, ...next, note: ["", false], work: null, isLocked: false, isUnread: false };
}

function isNew({ messages }) {
  return messages !== null && messages.length === 0;
}

function titleOf({ title }) {
  return title || "New conversation";
}

async function readStored() {
  let problem = "";
  try {
    await storage.open();
    const stored = (await storage.all()).sort((a, b) => b.created - a.created);
    conversations.push(...stored.map((each) => conversation({ ...each, messages: null })));
  } catch (e) {
    isKept = false;
    problem = `this browser does not store conversations, which end with the page: ${e.message}`;
  }
  storage.others.addEventListener("message", ({ data }) => readAgain(data));
  const shown = byId(location.hash.slice(1)) ?? lastUsed();
  drawList();
  await open(shown ?? begin());
  if (problem !== "") tell(current, problem, true);
}

function byId(id) {
  return conversations.find((each) => each.id === id);
}

function lastUsed() {
  return [...conversations].sort((a, b) => b.used - a.used)[0];
}

// One where nothing was asked yet.
function begin() {
  let found = conversations.find((each) => isNew(each) && !each.work);
  if (!found) conversations.unshift((found = conversation()));
  drawList();
  return found;
}

// A question without an answer is asked again, if no other page waits for one.
async function readMessages(each, isElsewhere) {
  const found = await storage.messages(each.id);
  const asked = found.at(-1)?.role === "user" ? found.pop() : null;
  if (asked && !isElsewhere) takeBack(each, asked);
  each.messages = found;
}

// A question that was not answered can be sent again.
function takeBack(each, { content, document }) {
  each.draft = each.draft === "" ? content : `${content}\n\n${each.draft}`;
  each.attachment ??= document ?? null;
}

// Another page of this browser has changed one.
async function readAgain(id) {
  const mine = byId(id);
  if (mine?.work) return;
  const stored = await storage.one(id);
  if (!stored && !mine) return;
  if (!stored) {
    forget(mine);
    if (mine === current) await open(conversations[0] ?? begin());
  } else if (!mine) {
    conversations.push(conversation({ ...stored, messages: null }));
    conversations.sort((a, b) => b.created - a.created);
  } else {
    Object.assign(mine, stored);
    if (mine.messages !== null) await readMessages(mine, true);
    drawConversation(mine);
  }
  drawList();
}

async function save(each, n, message) {
  if (!isKept) return;
  try {
    await storage.save(each, n, message);
  } catch (e) {
    tell(each, `this browser did not store it: ${e.message}`, true);
  }
}

function tell(each, text, isError = false) {
  each.note = [text, isError];
  drawNote(each);
  drawEntry(each);
}

function requestOf({ messages, library }) {
  const asked = messages.slice(0, -1).map(({ role, content, document }) => ({
    role,
    content: document ? `${document.text}\n\n${content}` : content,
  }));
  return { messages: asked, temperature: 0.2, ...(library !== "" && { document: library }) };
}

async function ask(each, question) {
  if (conversations.filter(({ work }) => work).length >= MOST_AT_ONCE) {
    tell(each, `${MOST_AT_ONCE} conversations are being answered: wait for one, or stop it`, true);
    return;
  }
  // two pages of this browser would overwrite each other's messages; a page that comes from another machine
  // over plain HTTP has no locks
  if (!navigator.locks) return askAlone(each, question);
  // this page itself may still be storing the answer before
  const ifAvailable = !each.isLocked;
  await navigator.locks.request(`snapkv-local ${each.id}`, { ifAvailable }, async (lock) => {
    if (!lock) {
      tell(each, "another window waits for an answer in this conversation: wait for it, or stop it there", true);
      return;
    }
    each.isLocked = true;
    try {
      await askAlone(each, question);
    } finally {
      each.isLocked = false;
    }
  });
}

async function askAlone(each, question) {
  const asked = { role: "user", content: question, document: each.attachment ?? undefined };
  if (isNew(each) && each.library !== "") asked.about = nameInLibrary(each.library);
  const answer = { role: "assistant", content: "" };
  const n = each.messages.push(asked, answer) - 1;
  const wasUntitled = each.title === "";
  if (wasUntitled) each.title = firstWords(question);
  Object.assign(each, { draft: "", attachment: null, pasted: null, isUnread: false });
  each.work = { controller: new AbortController(), phase: "waiting", share: null };
  drawConversation(each);
  tell(each, "waiting for the model");
  await save(each, n - 1, asked);

  const failed = await follow(each, answer, n);
  each.work = null;
  if (failed && answer.content === "") {
    each.messages.splice(-2);
    takeBack(each, asked);
    if (wasUntitled && isNew(each)) each.title = "";
    if (isKept) await storage.remove(each.id, n - 1);
    if (each === current) drawConversation(each);
  } else {
    await save(each, n, answer);
    drawTook(each);
  }
  each.isUnread = each !== current;
  tell(each, ...(failed ?? ["", false]));
  say(each, failed ? failed[0] : answer.content);
  await lookAtStates();
}

// Null once the answer is whole, or else what there is to say.
async function follow(each, answer, n) {
  let saved = performance.now();
  try {
    for await (const event of answerTo(requestOf(each), each.work.controller.signal)) {
      if (event.share !== undefined) progress(each, "reading", event.share);
      if (event.thinks) progress(each, "thinking", null);
      if (event.took) answer.took = event.took;
      if (event.held) {
        hold(each, event.held);
        lookAtStates();
      }
      if (event.piece) {
        answer.content += event.piece;
        progress(each, "answering", null);
        drawPiece(each, event.piece);
        if (performance.now() - saved > SAVE_EVERY) {
          saved = performance.now();
          save(each, n, answer);
        }
      }
    }
    return null;
  } catch (e) {
    if (e.name === "AbortError") return ["stopped", false];
    if (e instanceof ServerGone) serverIsGone();
    const broke = answer.content === "" ? "" : "the answer broke off: ";
    return [`${broke}${e.message}`, true];
  }
}

function progress(each, phase, share) {
  if (each.work.phase === phase && each.work.share === share) return;
  each.work.phase = phase;
  each.work.share = share;
  const note = { answering: "", thinking: "the model is thinking" }[phase] ?? phase;
  if (each.note[0] !== note) tell(each, note);
  else drawNote(each);
  drawEntry(each);
}

// The server has one conversation by that id: of two that begin alike it goes on with the one asked last.
function hold(each, id) {
  for (const other of conversations) {
    if (other !== each && other.held === id) {
      other.held = "";
      save(other);
    }
  }
  each.held = id;
  save(each);
}

function stop(each) {
  each.work?.controller.abort();
}

function forget(each) {
  stop(each);
  conversations.splice(conversations.indexOf(each), 1);
}

// From this browser, and from the server.
async function remove(each) {
  const at = conversations.indexOf(each);
  forget(each);
  await open(conversations[at] ?? conversations[at - 1] ?? begin());
  drawList();
  try {
    if (isKept) await storage.remove(each.id);
    if (each.held === "") return;
    const response = await request(`/slots/${each.held}?action=erase`, { method: "POST" });
    if (!response.ok && response.status !== 404) throw new Error(await failure(response));
    await lookAtStates();
  } catch (e) {
    tell(current, `${titleOf(each)} is deleted here, and the server may still hold it: ${e.message}`, true);
  }
}
