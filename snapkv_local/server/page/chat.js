"use strict";

// The conversation that is shown. All text of documents and of the model goes through textContent, never
// through HTML.

async function open(each) {
  const isOther = current !== each;
  current = each;
  each.isUnread = false;
  if (each.messages === null) {
    at("chat").replaceChildren();
    await readMessages(each, false);
    if (current !== each) return; // by now another one is shown
  }
  history.replaceState(null, "", `#${each.id}`);
  if (isOther) showRename(false);
  drawConversation(each);
  drawStates();
}

function drawConversation(each) {
  if (each !== current) return;
  at("title").textContent = titleOf(each);
  document.title = `${titleOf(each)} · snapkv-local`;
  const isRenamed = !at("rename-form").hidden;
  at("delete").hidden = isRenamed || (conversations.length === 1 && isNew(each));
  at("rename").hidden = isRenamed || isNew(each);
  at("chat").replaceChildren();
  each.messages.forEach(addTurn);
  at("question").value = each.draft;
  drawAttachment(each);
  drawNote(each);
  at("pane").scrollTop = at("pane").scrollHeight;
}

function addTurn({ role, content, document: attached, about, took }) {
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  const who = document.createElement("h3");
  who.className = "unseen";
  who.textContent = role === "user" ? "Question" : "Answer";
  const body = document.createElement("div");
  body.className = "text";
  body.textContent = content;
  turn.append(who);
  const named = [about, attached?.name].filter(Boolean).join(" · ");
  if (named !== "") {
    const note = document.createElement("div");
    note.className = "attached";
    note.textContent = named;
    turn.append(note);
  }
  turn.append(body);
  if (took) addFigures(turn, took);
  at("chat").append(turn);
}

function addFigures(turn, took) {
  const line = document.createElement("p");
  line.className = "figures";
  line.textContent = figures(took);
  turn.append(line);
}

// Whoever reads further above is left there.
function keepAtEnd(change) {
  const pane = at("pane");
  const isAtEnd = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 60;
  change();
  if (isAtEnd) pane.scrollTop = pane.scrollHeight;
}

function drawPiece(each, piece) {
  if (each !== current) return;
  keepAtEnd(() => at("chat").lastElementChild.querySelector(".text").append(piece));
}

function drawTook(each) {
  const { took } = each.messages.at(-1);
  if (each === current && took) keepAtEnd(() => addFigures(at("chat").lastElementChild, took));
}

// What is going on in a conversation.
function drawNote(each) {
  if (each !== current) return;
  const [text, isError] = each.note;
  put(at("status"), text);
  at("status").classList.toggle("error", isError);
  at("send").hidden = each.work !== null;
  at("stop").hidden = each.work === null;
  at("library").disabled = each.work !== null;
  const share = each.work?.share ?? null;
  at("progress-field").hidden = share === null;
  at("progress").value = share ?? 0;
  at("share").textContent = share === null ? "" : percent(share);
}

// For who does not see it; what is wrong with the one that is shown stands in its status.
function say(each, text) {
  const isError = each.note[1];
  if (each !== current) text = `${titleOf(each)}: ${isError ? text : "answered"}`;
  else if (isError) return;
  at("said").textContent = text;
}

function showRename(isOpen) {
  at("rename-form").hidden = !isOpen;
  at("title").hidden = isOpen;
  at("rename").hidden = isOpen || isNew(current);
  at("delete").hidden = isOpen;
  if (isOpen) {
    at("name").value = current.title;
    at("name").select();
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (question === "" || current.work) return;
  let each = current;
  if (!isNew(each) && each.chosen !== each.library) {
    const { attachment, pasted, chosen } = each;
    Object.assign(each, { draft: "", attachment: null, pasted: null, chosen: each.library });
    tell(each, "");
    each = Object.assign(begin(), { attachment, pasted, chosen });
    open(each);
  }
  each.library = each.chosen;
  if (each.pasted?.trim()) each.attachment = { name: "pasted text", text: each.pasted };
  at("question").focus(); // the button goes
  ask(each, question);
});
at("question").addEventListener("input", () => (current.draft = at("question").value));
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("stop").addEventListener("click", () => {
  stop(current);
  at("question").focus();
});
at("rename").addEventListener("click", () => showRename(true));
at("rename-form").addEventListener("submit", (event) => {
  event.preventDefault();
  current.title = at("name").value.trim() || firstWords(current.messages[0].content);
  save(current);
  showRename(false);
  drawConversation(current);
  drawEntry(current);
  at("rename").focus();
});
function leaveRename() {
  showRename(false);
  at("rename").focus();
}
at("rename-cancel").addEventListener("click", leaveRename);
at("name").addEventListener("keydown", (event) => {
  if (event.key === "Escape") leaveRename();
});
at("delete").addEventListener("click", () => {
  at("confirm-question").textContent = `Delete “${titleOf(current)}” from this browser and from the server?`;
  at("confirm").dataset.id = current.id;
  at("confirm").showModal();
});
at("confirm").addEventListener("close", async () => {
  const each = byId(at("confirm").dataset.id);
  if (each && at("confirm").returnValue === "delete") {
    await remove(each);
    at("title").focus();
  } else {
    at("delete").focus();
  }
  at("confirm").returnValue = "";
});
at("key").addEventListener("change", meetServer);

readStored().then(meetServer);
