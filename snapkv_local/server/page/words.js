"use strict";

// Numbers in words.

const at = (id) => document.getElementById(id);

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

// What an answer took: `usage.snapkv` of the server.
function figures(s) {
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
  if (s.n_cached > 0) parts.push(`${s.n_cached.toLocaleString()} were there`);
  parts.push(`first token after ${s.seconds_prefill.toFixed(1)} s`);
  return parts.join(" · ");
}

// What the server keeps of a conversation: an entry of GET /slots.
function kept(entry) {
  const parts = [`${entry.n_tokens.toLocaleString()} tokens`];
  const s = entry.snapkv;
  if (s) parts.push(`${s.n_kept.toLocaleString()} rows`);
  if (entry.n_bytes !== undefined) parts.push(size(entry.n_bytes));
  else if (s) parts.push(`${size(s.bytes_kv - s.bytes_decode_cells)} KV`);
  return parts.join(" · ");
}

// A title for a conversation that has no name.
function firstWords(text) {
  const words = text.trim().split(/\s+/);
  let title = words[0].slice(0, 40);
  for (const word of words.slice(1, 8)) {
    if (title.length + word.length > 40) break;
    title += ` ${word}`;
  }
  return title.length < words.join(" ").length ? `${title} …` : title;
}
