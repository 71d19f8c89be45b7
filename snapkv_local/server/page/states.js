"use strict";

// Whether the server is there, and what it holds of each conversation.

const LOOK_EVERY = 10_000; // milliseconds: other programs use the server, too
const LOOK_FOR_IT_EVERY = 1_000;
const ENDS_WITHIN = 300; // milliseconds, after its last event an answer is put back to where it was held

const states = {
  entries: null, // of GET /slots, by the id of their conversation; null while they are not known
  isThere: false,
  next: 0, // timers
  again: 0,
};

// [kind, word, what is kept] of a conversation.
function stateOf(conversation) {
  const { work, held } = conversation;
  if (work) return ["busy", work.share === null ? work.phase : `${work.phase}, ${percent(work.share)}`, ""];
  if (isNew(conversation)) return ["new", "nothing asked yet", ""];
  if (states.entries === null) return ["unknown", "state not known", ""];
  const entry = states.entries.get(held);
  if (entry?.is_processing) return ["warm", "warm", ""];
  if (!entry || entry.n_tokens === 0) return ["cold", "cold", "will be read anew"];
  if (entry.id >= 0) return ["warm", "warm", kept(entry)];
  return entry.rests_in === "ram" ? ["ram", "in memory", kept(entry)] : ["disk", "on disk", kept(entry)];
}

async function lookAtStates() {
  try {
    const response = await request("/slots?resting=true");
    const list = response.ok ? await response.json() : null; // a server may have been told not to say it
    states.entries = list && new Map(list.map((entry) => [entry.conversation, entry]));
    const ends = ({ work, held }) => !work && states.entries?.get(held)?.is_processing;
    clearTimeout(states.again);
    if (conversations.some(ends)) states.again = setTimeout(lookAtStates, ENDS_WITHIN);
  } catch (e) {
    if (!(e instanceof ServerGone)) throw e;
    serverIsGone();
  }
  drawStates();
}

function sayOfServer(text, isError = false) {
  at("server").hidden = text === "";
  put(at("server"), text);
  at("server").classList.toggle("error", isError);
}

// Called by whoever finds that it does not answer; looks for it until it does.
function serverIsGone() {
  states.isThere = false;
  states.entries = null;
  sayOfServer("The server does not answer: is it running? Conversations are kept in this browser.", true);
  drawStates();
  meetServerIn(LOOK_FOR_IT_EVERY);
}

function meetServerIn(milliseconds) {
  clearTimeout(states.next);
  states.next = setTimeout(meetServer, milliseconds);
}

// Waits for the server and its model, and reads what it has.
async function meetServer() {
  clearTimeout(states.next);
  try {
    const health = await request("/health");
    if (!health.ok) {
      const { status } = await health.json();
      const isLoading = status === "loading";
      sayOfServer(
        isLoading ? "the model is loading" : "the model's file has changed: start the server again",
        !isLoading,
      );
      meetServerIn(LOOK_FOR_IT_EVERY);
      return;
    }
    states.isThere = true;
    sayOfServer("");
    for (const each of conversations) {
      if (each.note[0] === GONE) tell(each, "");
    }
    await nameModel();
    await listLibrary();
    await lookAtStates();
  } catch (e) {
    if (!(e instanceof ServerGone)) throw e;
    serverIsGone();
  }
}

async function nameModel() {
  const response = await request("/v1/models");
  if (response.ok) {
    at("model").textContent = (await response.json()).data[0].id;
    return;
  }
  await failure(response); // which asks for a key
  // a person who already types goes on where they are
  if (document.activeElement === document.body) at("key").focus();
}

setInterval(() => {
  if (document.hasFocus() && states.isThere) lookAtStates();
}, LOOK_EVERY);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && states.isThere) lookAtStates();
});
