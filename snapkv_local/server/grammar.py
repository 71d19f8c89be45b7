"""From a JSON schema of a request to a grammar that llama.cpp takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from snapkv_local.server.errors import refusal

if TYPE_CHECKING:
    from llama_cpp.llama_grammar import LlamaGrammar

    from snapkv_local.llama import Llama

_MAX_BYTES = 1024 * 1024


def any_json(llm: Llama) -> LlamaGrammar:
    """For any JSON object."""
    from llama_cpp.llama_grammar import JSON_GBNF

    return _checked(llm, JSON_GBNF, "response_format")


def from_schema(llm: Llama, schema: dict[str, Any], param: str) -> LlamaGrammar:
    """For JSON of a schema.

    Args:
        param: the request's field that has the schema.

    Raises:
        ApiError: llama.cpp has no grammar for the schema. Schemas are never fetched.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        text = json_schema_to_gbnf(json.dumps(schema))
    # it has no exception of its own: KeyError, AssertionError, RecursionError ...
    except Exception as e:
        raise refusal(f"the JSON schema cannot be used: {e or type(e).__name__}", param) from e
    return _checked(llm, text, param)


def _checked(llm: Llama, text: str, param: str) -> LlamaGrammar:
    """llama_cpp does not look at what llama.cpp says of a grammar, so it is parsed once before."""
    from llama_cpp import llama_cpp
    from llama_cpp.llama_grammar import LlamaGrammar

    if len(text) > _MAX_BYTES:
        raise refusal("the JSON schema makes too large a grammar", param)
    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    try:
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, text.encode("utf-8"), b"root")
    except UnicodeEncodeError as e:
        raise refusal("the JSON schema holds text that is not Unicode", param) from e
    if not sampler:
        raise refusal("llama.cpp cannot use the grammar of this JSON schema", param)
    llama_cpp.llama_sampler_free(sampler)
    return LlamaGrammar.from_string(text, verbose=False)
