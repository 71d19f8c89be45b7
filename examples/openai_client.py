"""Ask a server about a document with OpenAI's client.

pip install openai
snapkv-local serve model.gguf --ctx 128k --budget 2048
python examples/openai_client.py book.txt "Who finds the letter?"
"""

import os
import sys
from pathlib import Path

from openai import OpenAI


def main() -> None:
    file, question = sys.argv[1:3]
    document = Path(file).read_text(encoding="utf-8-sig")  # refuses what is not text
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"),
        api_key=os.environ.get("SNAPKV_API_KEY", "none"),
    )
    stream = client.chat.completions.create(
        model="any",  # the server has one
        messages=[{"role": "user", "content": f"{document}\n\n{question}"}],
        stream=True,
        stream_options={"include_usage": True},
        # extra_body={"snapkv": {"budget": 1024}} for this request only
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage:
            figures = chunk.usage.model_extra["snapkv"]
            kept = f"kept {figures['n_kept']} of {figures['n_prompt']} tokens"
            n_bytes = figures["bytes_kv"] - figures["bytes_decode_cells"]
            print(f"\n{kept}, {n_bytes:,} of {figures['bytes_kv_full']:,} bytes of KV")


if __name__ == "__main__":
    main()
