"""Documents that a Llama reads once, and writes to files to be asked later."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api, support  # isort: skip

from functools import partial

import numpy as np

from snapkv_local.errors import DocumentError, PromptError
from snapkv_local.llama.worded import WordedLlama
from snapkv_local.native import states, vault
from snapkv_local.prompt import template
from snapkv_local.prompt.build import SEPARATOR
from snapkv_local.storage import fingerprint, seal
from snapkv_local.storage.document import KIND, Document, blocks_of
from snapkv_local.storage.new_file import check_space

if TYPE_CHECKING:
    from snapkv_local.native.context import Progress

_ROPE = (
    *("rope_scaling_type", "rope_freq_base", "rope_freq_scale"),
    *("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx"),
)


def ingest(
    llm: WordedLlama, text: str, path: str | Path, title: str, progress: Progress | None
) -> Document:
    """Llama.ingest()."""
    context = llm._context("ingest")
    if llm.snapkv is None or llm.snapkv.vault == "off":
        raise DocumentError(str(path), "needs the vault, whose K and V it holds", "use {vault}")
    opening, tokens = _opening(llm, text)
    if len(tokens) <= llm.snapkv.window_size:
        raise PromptError(
            f"document of {len(tokens)} tokens",
            f"is not longer than the window of {llm.snapkv.window_size}",
            "put it into the question",
        )
    # before hours go into the prefill; the file has little more than K and V
    check_space(path, len(tokens) * api.llama_snapkv_row_bytes(context.ctx))
    # an empty vault, so that its one segment ends with the document
    context.clear_vault()
    config = llm.snapkv
    try:
        if config.chooser() is not None:  # it may want a question, and nobody has asked yet
            llm.set_snapkv(replace(config, policy="snapkv"))
        llm.prefill(tokens, progress)
    finally:
        if llm.snapkv != config:
            llm.set_snapkv(config)
    parts, held = vault.segments(context), states.kept(context, in_vault=True)
    header = {
        "title": title,
        "opening": opening,
        "model": asdict(model_of(llm)),
        "n_swa_rows": parts[-1].n_swa_rows,
        "states": [state.pos for state in held],
    }
    data = np.frombuffer(text.encode(), np.uint8)
    blocks = [
        seal.Block("text", np.uint8, data.shape, [data]),
        seal.Block("tokens", np.int32, (len(tokens),), [np.asarray(tokens, np.int32)]),
        *blocks_of(parts, held),
    ]
    seal.write(path, KIND, header, blocks)
    return Document.open(path)


def check(llm: WordedLlama, document: Document) -> None:
    """Refuse a document that the model would not have computed so.

    Raises:
        DocumentError: with what differs.
    """
    own = model_of(llm)
    problem = own.differs(document.model)
    if problem is not None:
        raise DocumentError(
            str(document.path),
            f"was made by {document.model.name or document.model.file}: {problem}",
            "ask the model that made it, with its settings, or ingest the text again",
        )
    if len(document.tokens) >= llm.n_ctx():
        raise DocumentError(
            str(document.path),
            f"has {len(document.tokens):,} tokens, and the context holds {llm.n_ctx():,}",
            "raise {n_ctx}",
        )
    if llm.control_words().suspects(document.text):
        opening, tokens = _opening(llm, document.text)
        # with another chat format no chat begins with the document
        if opening + document.text == document.prefix and tokens != document.tokens.tolist():
            raise DocumentError(
                str(document.path),
                "was made by a version that took words of its text for control tokens",
                "ingest the text again",
            )


def _opening(llm: WordedLlama, text: str) -> tuple[str, list[int]]:
    """What the chat template writes before a user's message, and the tokens of that and the text."""
    if not text.strip():
        raise PromptError("the document", "is empty", "give a text")
    heard = template.heard(llm, text + SEPARATOR + "?")
    wording = heard.wording
    written = heard.plain()
    at = written.rfind(text)
    if at < 0:
        raise PromptError(
            "the document",
            "is changed by the chat template",
            "strip the white space around it, or take another model",
        )
    end = at + len(text)
    prefix = heard.text[: end if wording is None else wording.cut(heard.text, end)]
    # not by documents that are open
    tokens = replace(heard, text=prefix).tokens(partial(WordedLlama.tokenize, llm), llm)
    return written[:at], tokens


def model_of(llm: WordedLlama) -> fingerprint.Model:
    """The model of a Llama."""
    path = Path(llm.model_path)
    params = llm.context_params
    lora = ""
    if llm.lora_path:
        lora = f"{fingerprint.digest_of(Path(llm.lora_path))} x {llm.lora_scale}"
    key = f"{llm.metadata.get('general.architecture')}.rope.scaling.original_context_length"
    original = llm.metadata.get(key)
    types = [support.ggml_type_name(number) for number in (params.type_k, params.type_v)]
    return fingerprint.Model(
        name=llm.metadata.get("general.name", ""),
        file=path.name,
        path=str(path.absolute()),
        digest=fingerprint.digest_of(path),
        kv_type=types[0] if types[0] == types[1] else "/".join(types),
        lora=lora,
        rope={name: float(getattr(params, name)) for name in _ROPE},
        long=original is not None and llm.n_ctx() > int(original),
    )
