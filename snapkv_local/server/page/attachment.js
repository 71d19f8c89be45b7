"use strict";

// What the next question is about: a file, a text that is pasted, or a document that the server has read.

const MAX_FILE = 64 * 1024 * 1024;

function attach(each, name, text) {
  each.attachment = text === "" ? null : { name, text };
  if (each === current) drawAttachment(each);
}

function drawAttachment({ attachment, pasted, chosen }) {
  at("drop").classList.toggle("has-document", attachment !== null);
  at("remove").hidden = attachment === null;
  at("document-name").textContent = attachment
    ? `${attachment.name}, ${attachment.text.length.toLocaleString()} characters`
    : "Drop a text file here, or";
  at("pasted").hidden = pasted === null;
  at("pasted").value = pasted ?? "";
  chooseInLibrary(chosen);
}

async function readFile(file) {
  if (!file) return;
  const each = current;
  if (file.size > MAX_FILE) {
    tell(each, `${file.name} is larger than ${size(MAX_FILE)}`, true);
    return;
  }
  try {
    const { text, warning } = textOf(new Uint8Array(await file.arrayBuffer()), file.name);
    each.pasted = null;
    attach(each, file.name, text);
    tell(each, warning);
  } catch (e) {
    tell(each, e.message, true);
  }
}

// What the server has read before it was started. A conversation is about one of them from its beginning.
async function listLibrary() {
  const response = await request("/v1/documents");
  if (!response.ok) {
    tell(current, await failure(response), true);
    return;
  }
  const options = (await response.json()).data.map(
    (d) => new Option(`${d.id}, ${d.n_tokens.toLocaleString()} tokens`, d.id),
  );
  at("library").replaceChildren(new Option("none", ""), ...options);
  chooseInLibrary(current.chosen);
}

// What is chosen stays, even if the server no longer has it, so that no question goes without its document
// unnoticed.
function chooseInLibrary(id) {
  for (const option of [...at("library").options]) {
    if (option.dataset.isGone && option.value !== id) option.remove();
  }
  if (![...at("library").options].some((option) => option.value === id)) {
    const option = new Option(`${id}, not there`, id);
    option.dataset.isGone = "true";
    at("library").append(option);
  }
  at("library").value = id;
  at("library-field").hidden = at("library").options.length <= 1;
}

function nameInLibrary(id) {
  return [...at("library").options].find(({ value }) => value === id)?.text ?? id;
}

at("library").addEventListener("change", () => {
  current.chosen = at("library").value;
  const changes = !isNew(current) && current.chosen !== current.library;
  const rule = "a conversation is about one document: the next question starts a new one";
  tell(current, changes ? rule : "");
});
at("remove").addEventListener("click", () => attach(current, "", ""));
at("file").addEventListener("change", (event) => {
  readFile(event.target.files[0]);
  event.target.value = "";
});
at("paste").addEventListener("click", () => {
  current.pasted = current.pasted === null ? "" : null;
  drawAttachment(current);
  if (current.pasted !== null) at("pasted").focus();
});
at("pasted").addEventListener("input", () => (current.pasted = at("pasted").value));
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
