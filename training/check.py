"""Are the sequences what they should be? check.py DATA

Put together from pieces, they must have the tokens of their text; values must be what the masks say; and how
many tokens a second does one process make?
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from batches import batch, task_names
from sequence import Maker

N_TOKENS = 131_072


def differ(maker: Maker, ids: list[int]) -> str:
    """Where a sequence is not tokenized as its text; empty where it is."""
    tokenizer = maker.spelling.tokenizer
    again = tokenizer.encode(
        tokenizer.decode(ids, skip_special_tokens=False), add_special_tokens=False
    ).ids
    for i, (a, b) in enumerate(zip(ids, again, strict=False)):
        # the last token of a sequence may be cut off
        if a != b and i < len(ids) - 8:
            return repr(tokenizer.decode(ids[max(0, i - 12) : i + 6]))
    return ""


def main(folder: Path) -> int:
    """Number of sequences that are not what they should be."""
    maker = Maker(folder, 5)
    n_wrong = 0
    for length in (512, 2048, 8192, 32768, 131072):
        begin = time.time()
        made = batch(maker, length, N_TOKENS)
        seconds = time.time() - begin
        rows = made["ids"].reshape(-1, length).tolist()
        wrong = [text for row in rows[:60] if (text := differ(maker, row))]
        n_wrong += len(wrong)
        names, counts = np.unique(made["task"][made["task"] >= 0] // 2, return_counts=True)
        by_task = {task_names()[2 * i]: int(n) for i, n in zip(names, counts, strict=True)}
        n_values = int((made["answer"] > 0).sum())
        print(
            f"{length}: {N_TOKENS / seconds:,.0f} tokens/s, {n_values} tokens of values, {by_task}"
        )
        print(
            f"  tokenized otherwise: {len(wrong)} of {min(60, len(rows))}", *wrong[:4], sep="\n  "
        )
        decode = maker.spelling.tokenizer.decode
        for i in range(1, 6):
            here = made["answer"] == i
            before = made["ids"][made["at"][here][0] - 30 : made["at"][here][0] + 1]
            print("   ", repr(decode(before.tolist(), skip_special_tokens=False)), "->",
                  repr(decode(made["target"][here].tolist())))  # fmt: skip
    print(
        maker.spelling.tokenizer.decode(maker.sequence(900).ids.tolist(), skip_special_tokens=False)
    )
    return n_wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) > 0)
