"""`snapkv-local compare`: records of several machines side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from snapkv_local.cli.console import result_console
from snapkv_local.cli.options import json_option


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="RECORD...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with plots to this file. It needs no other file and no network.",
)
@click.option(
    "--png", type=click.Path(file_okay=False, path_type=Path), help="Write plots to this folder."
)
@json_option
def compare(files: tuple[Path, ...], html: Path | None, png: Path | None, as_json: bool) -> None:
    """Put RECORDs of measurements side by side.

    They are of several machines and lengths, with the full cache and with compression. A RECORD is a
    file that `snapkv-local bench --json FILE` or measure/gpu.py wrote. Records of other kinds are
    skipped.
    """
    # only now: the records' module needs packages that other commands do without
    from snapkv_local.compare.fits import fits
    from snapkv_local.compare.kinds import OtherRecordError
    from snapkv_local.compare.reader import Record, load
    from snapkv_local.compare.terminal import cases_table, fits_table

    records: list[Record] = []
    others: list[OtherRecordError] = []
    for file in files:
        try:
            records.append(load(file))
        except OtherRecordError as e:
            others.append(e)
    if not records:
        raise others[0]
    for other in others:
        click.echo(f"Skipped {other.subject}: it {other.problem}", err=True)
    if html is not None:
        from snapkv_local.compare.page import page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(records), encoding="utf-8")
        click.echo(f"Wrote {html}", err=True)
    if png is not None:
        from snapkv_local.compare.plots import write_pngs

        for path in write_pngs(records, png):
            click.echo(f"Wrote {path}", err=True)
    found = fits(records)
    if as_json:
        result = {
            "records": [record.to_dict() for record in records],
            "fits": [fit.to_dict() for fit in found],
        }
        click.echo(json.dumps(result))
        return
    console = result_console()
    console.print(cases_table(records))
    console.print(fits_table(records, found))
