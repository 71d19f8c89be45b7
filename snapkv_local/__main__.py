"""`snapkv-local`, the command, and `python -m snapkv_local`."""

from __future__ import annotations

import os
import sys

from snapkv_local import foreign, memory, process
from snapkv_local.errors import SnapKVError


def main() -> None:
    """Run the command line in a process of its own."""
    process.is_own = True
    # ggml would start a debugger where it aborts
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        memory.require(memory.PROGRAM, "snapkv-local")
        # only now: there may be too little memory for it
        from snapkv_local.cli import border
        from snapkv_local.cli import main as command_line

        border.open_streams()
    except Exception as e:
        if foreign.is_out_of_memory(e) and not isinstance(e, SnapKVError):
            e = foreign.out_of_memory("snapkv-local", str(e))
        if not isinstance(e, SnapKVError):
            raise
        print(f"Error: {e.says('cli')}", file=sys.stderr)
        sys.exit(1)
    command_line(prog_name="snapkv-local")


if __name__ == "__main__":
    main()
