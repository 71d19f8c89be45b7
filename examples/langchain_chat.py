"""Ask a server about a document with LangChain.

pip install langchain-openai
snapkv-local serve model.gguf --ctx 128k --budget 2048
python examples/langchain_chat.py book.txt "Who finds the letter?"
"""

import os
import sys
from pathlib import Path

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main() -> None:
    file, question = sys.argv[1:3]
    document = Path(file).read_text(encoding="utf-8-sig")  # refuses what is not text
    model = ChatOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"),
        api_key=os.environ.get("SNAPKV_API_KEY", "none"),
        model="any",  # the server has one
        temperature=0,
        max_retries=0,
        stream_usage=True,
        # extra_body={"snapkv": {"budget": 1024}} for a budget of its own
    )
    # the question comes last: what is kept is chosen for the end of the prompt
    prompt = ChatPromptTemplate.from_messages([("user", "{document}\n\n{question}")])
    usage = None
    for piece in (prompt | model).stream({"document": document, "question": question}):
        print(piece.text, end="", flush=True)
        usage = piece.usage_metadata or usage
    if usage:
        print(f"\n{usage['input_tokens']} tokens read, {usage['output_tokens']} written")


if __name__ == "__main__":
    main()
