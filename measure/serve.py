"""Measure the server with several conversations, and write results/serve-CASE.json.

    measure/serve.py agents      # three agents in turn: what each turn evaluates, and its first token
    measure/serve.py short       # a short request while a long prompt is read
    measure/serve.py resting     # conversations that come back from memory and from files
    measure/serve.py mixed       # many requests, some of which their clients leave: memory, stuck sequences
    measure/serve.py killed      # kill -9 with conversations in files; another server goes on with them
    measure/serve.py isolation   # a secret each, at random, in fewer sequences: as each is alone

`--llama-server PATH` measures agents and short beside llama.cpp's server, which is built from the whole tree
of the pinned commit: `cmake --build ... --target llama-server`.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import serve_lasting
import serve_speed
from snapkv_local.bench import record as records

ROOT = Path(__file__).resolve().parent.parent

CASES = {
    "agents": serve_speed.agents,
    "short": serve_speed.short,
    "resting": serve_lasting.resting,
    "mixed": serve_lasting.mixed,
    "killed": serve_lasting.killed,
    "isolation": serve_lasting.isolation,
}


def main() -> None:
    """Run cases, and write a record of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--threads", type=int, default=1, help="of agents and short")
    parser.add_argument("--n-ctx", type=int, default=8192, help="of agents and short")
    parser.add_argument("--budget", type=int, default=512, help="of agents and short")
    parser.add_argument("--n-chunk", type=int, default=512, help="that a prompt is read in")
    parser.add_argument("--minutes", type=float, default=60, help="no turn or round begins later")
    parser.add_argument("--n-prompt", type=int, default=4300)
    parser.add_argument("--n-turn", type=int, default=190)
    parser.add_argument("--n-turns", type=int, default=10)
    parser.add_argument("--n-rounds", type=int, default=3)
    parser.add_argument("--n-talks", type=int, default=50)
    parser.add_argument("--n-requests", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--llama-server", metavar="PATH")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="of snapkv-local serve")
    args = parser.parse_args()
    args.options = args.serve.split()
    for case in args.cases:
        found = CASES[case](args)
        record = {
            "case": case,
            "date": date.today().isoformat(),
            "commit": records.commit(ROOT),
            "model": args.model,
            "n_prompt": args.n_prompt,
            "options": args.options,
            **records.machine(),
            **found,
        }
        path = args.out / f"serve-{case}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(
            {k: v for k, v in found.items() if k not in ("turns", "rounds", "bytes_resident")}, path
        )


if __name__ == "__main__":
    main()
