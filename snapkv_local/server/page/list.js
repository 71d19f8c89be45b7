"use strict";

// The list of conversations. Its entries stay the same elements, so that the focus stays where it is.

const entries = new Map(); // elements by id

function drawList() {
  for (const [id, { item }] of entries) {
    if (!byId(id)) {
      item.remove();
      entries.delete(id);
    }
  }
  conversations.forEach((each, i) => {
    if (!entries.has(each.id)) entries.set(each.id, newEntry(each.id));
    const { item } = entries.get(each.id);
    const there = at("conversations").children[i];
    if (there !== item) at("conversations").insertBefore(item, there ?? null);
    drawEntry(each);
  });
}

function drawStates() {
  conversations.forEach(drawEntry);
}

function newEntry(id) {
  const [item, button] = [document.createElement("li"), document.createElement("button")];
  const [name, state, what, news] = ["name", "state", "kept", "news"].map((kind) => {
    const part = document.createElement("span");
    part.className = kind;
    return part;
  });
  const stopButton = document.createElement("button");
  button.type = stopButton.type = "button";
  button.className = "entry";
  button.append(name, news, state, what);
  button.addEventListener("click", () => choose(byId(id)));
  stopButton.textContent = "Stop";
  stopButton.addEventListener("click", () => {
    stop(byId(id));
    button.focus(); // this one goes
  });
  item.append(button, stopButton);
  return { item, button, stopButton, name, state, what, news };
}

function drawEntry(each) {
  const found = entries.get(each.id);
  if (!found) return;
  const [kind, word, what] = stateOf(each);
  put(found.name, titleOf(each));
  put(found.state, word);
  found.state.className = `state ${kind}`;
  put(found.what, what);
  put(found.news, !each.isUnread ? "" : each.note[1] ? "not answered" : "new");
  found.news.classList.toggle("error", each.note[1]);
  found.stopButton.hidden = !each.work || each === current;
  found.stopButton.setAttribute("aria-label", `Stop ${titleOf(each)}`);
  if (each === current) found.button.setAttribute("aria-current", "true");
  else found.button.removeAttribute("aria-current");
}

// Nothing is written again that is there: what reads the page aloud would begin anew.
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

async function choose(each) {
  const wasOverlay = document.body.classList.contains("list-open");
  showList(false);
  await open(each);
  if (wasOverlay) at("title").focus();
}

// On a narrow screen the list lies over the conversation.
function showList(isOpen) {
  document.body.classList.toggle("list-open", isOpen);
  at("show-list").setAttribute("aria-expanded", String(isOpen));
}

at("show-list").addEventListener("click", () => showList(!document.body.classList.contains("list-open")));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.classList.contains("list-open")) {
    showList(false);
    at("show-list").focus();
  }
});
at("new").addEventListener("click", async () => {
  await choose(begin());
  at("question").focus();
});
