"""A program written for llama_cpp: one import and one argument make it compress long prompts.

python examples/drop_in.py MODEL.gguf FILE "Who finds the letter?"
"""

import sys

from snapkv_local import Llama, SnapKVConfig, read_text  # was: from llama_cpp import Llama

model, file, question = sys.argv[1:]

llm = Llama(
    model_path=model,
    n_ctx=8192,
    verbose=False,
    snapkv=SnapKVConfig(budget=512),  # without this argument it is llama_cpp.Llama
)

document = read_text(file)  # PDF and DOCX, too
response = llm.create_chat_completion(
    messages=[{"role": "user", "content": f"{document}\n\n{question}"}],
    max_tokens=48,
    temperature=0.0,
)
print(response["choices"][0]["message"]["content"])
print(response["usage"])
