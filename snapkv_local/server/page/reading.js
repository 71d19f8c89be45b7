"use strict";

// A file's bytes as text, with the rules of snapkv_local/reading.py; what is not text is refused.

const MARKS = [
  { bytes: [0xff, 0xfe, 0, 0], name: "UTF-32" },
  { bytes: [0, 0, 0xfe, 0xff], name: "UTF-32" },
  { bytes: [0xff, 0xfe], name: "UTF-16", label: "utf-16le" },
  { bytes: [0xfe, 0xff], name: "UTF-16", label: "utf-16be" },
];
const BYTES_PER_WRONG_ONE = 1000;

// Gives {text, warning}, with "" for no warning; throws an Error that says why it is not text.
function textOf(bytes, name) {
  const begins = (magic) => magic.every((byte, i) => bytes[i] === byte);
  const ascii = (word) => begins([...word].map((c) => c.charCodeAt(0)));
  const use = "give it to `snapkv-local run --file`, which reads it, or save its text";
  if (ascii("%PDF-")) throw new Error(`${name} is a PDF: ${use}`);
  if (ascii("PK\u0003\u0004")) throw new Error(`${name} is a DOCX or another zip file: ${use}`);
  if (ascii("{\\rtf")) throw new Error(`${name} is RTF, which is not plain text: save its text`);
  const found = decode(bytes, name, begins);
  if (found.text.includes("\0")) throw new Error(`${name} is not text: it has zero bytes`);
  if (found.text.trim() === "") throw new Error(`${name} is empty`);
  return found;
}

function decode(bytes, name, begins) {
  const mark = MARKS.find(({ bytes }) => begins(bytes));
  if (mark) {
    if (!mark.label) throw new Error(`${name} is ${mark.name}: save it as UTF-8`);
    try {
      return { text: new TextDecoder(mark.label, { fatal: true }).decode(bytes), warning: "" };
    } catch {
      throw new Error(`${name} begins like ${mark.name}, and is not: save it as UTF-8`);
    }
  }
  const text = new TextDecoder().decode(bytes); // without its byte order mark
  const n = text.split("\ufffd").length - 1 - nReplacementCharacters(bytes);
  if (n * BYTES_PER_WRONG_ONE > bytes.length) {
    throw new Error(`${name} is not UTF-8 at ${n.toLocaleString()} places: save it as UTF-8`);
  }
  return { text, warning: n ? `${name}: ${n} wrong bytes became \ufffd` : "" };
}

// Those that are in the file, as EF BF BD, and not put in for wrong bytes.
function nReplacementCharacters(bytes) {
  let n = 0;
  for (let i = bytes.indexOf(0xef); i >= 0; i = bytes.indexOf(0xef, i + 1)) {
    if (bytes[i + 1] === 0xbf && bytes[i + 2] === 0xbd) n += 1;
  }
  return n;
}
