"""`python -m snapkv_local` is `snapkv-local`."""

from snapkv_local.cli import main

main(prog_name="snapkv-local")
