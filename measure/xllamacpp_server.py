"""llama-server out of the package xllamacpp, with some of its options: where no program was built.

    PYTHON measure/xllamacpp_server.py --model model.gguf --port 8081 --ctx-size 8192 --parallel 2

PYTHON is of an environment that has xllamacpp, and nothing of ours.
"""

import argparse
import signal
from importlib.metadata import version

import xllamacpp


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found = f"version: xllamacpp {version('xllamacpp')}"
    parser.add_argument("--version", action="version", version=found)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    for name in ("port", "threads", "threads-batch", "ctx-size", "parallel"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("batch-size", "ubatch-size"):
        parser.add_argument(f"--{name}", type=int, default=512)
    parser.add_argument("--flash-attn", choices=["on"], default="on")
    parser.add_argument("--no-kv-unified", action="store_true")
    args = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.hostnames, params.port = [args.host], args.port
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads_batch
    params.n_ctx, params.n_parallel = args.ctx_size, args.parallel
    params.n_batch, params.n_ubatch = args.batch_size, args.ubatch_size
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.kv_unified = not args.no_kv_unified
    params.fit_params = False
    params.endpoint_slots = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
