"""Ask a question about a long text file, and see what the answer took.

python examples/ask_a_document.py MODEL FILE "Who finds the letter?"
"""

import argparse
from pathlib import Path

from snapkv_local import Llama, SnapKVConfig, read_text
from snapkv_local.models.resolve import resolve

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="a GGUF file, `demo`, or hf:owner/repo")
parser.add_argument("file", type=Path)
parser.add_argument("question")
parser.add_argument("--budget", type=int, default=2048, help="rows to keep for each KV head")
parser.add_argument("--ctx", type=int, default=0, help="tokens; 0 for the model's context")
parser.add_argument("--max-tokens", type=int, default=256)
args = parser.parse_args()

llm = Llama(
    str(resolve(args.model)),
    snapkv=SnapKVConfig(budget=args.budget),
    n_ctx=args.ctx,
    n_gpu_layers=-1,
    verbose=False,
)

# the question comes last: what is kept is chosen for the end of the prompt
text = read_text(args.file) + "\n\n" + args.question
for chunk in llm.create_chat_completion(
    [{"role": "user", "content": text}],
    max_tokens=args.max_tokens,
    temperature=0.0,
    stream=True,
):
    print(chunk["choices"][0]["delta"].get("content", ""), end="", flush=True)
print()

stats = llm.last_prefill  # None for a prompt within the budget
if stats is not None:
    print(
        f"kept {stats.n_kept} of {stats.n_prompt} tokens, "
        f"KV cache {stats.bytes_kv / 1024**2:.1f} MiB "
        f"instead of {stats.bytes_kv_full / 1024**2:.1f} MiB"
    )
