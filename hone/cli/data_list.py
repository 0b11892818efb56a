"""`hone data list`: what the cache of tokenised data holds, and taking it out."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli.arguments import AsJson
from hone.cli.output import duration, number, print_json, print_table
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.data.cached import Entry

HEADING = ("KEY", "SAMPLES", "TOKENS", "SIZE", "AGE", "KIND", "TEMPLATE", "FROM")
SHOWN_KEY = 12  # characters; enough to tell the entries of one cache apart
DAY_S = 86_400


def list_cache(
    clean: Annotated[bool, typer.Option("--clean", help="Take entries out; asks before.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Only those older than this."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the tokenised data in the cache.

    The oldest stand first. What is taken out is tokenised again when it is needed; a run that has
    not finished then needs its data files as they were.

    \b
    Example:
      hone data list
      hone data list --older-than 30 --clean
      hone data list --clean --yes --json
    """
    import time

    from hone.data.cached import list_entries, remove
    from hone.data.prepared import default_cache_folder

    if yes and not clean:
        message = "`--yes` has no effect without `--clean`"
        raise UserError(message, hint="hone data list --clean --yes", exit_code=2)
    folder, now = default_cache_folder(), time.time()
    entries = list_entries(folder)
    if older_than is not None:
        entries = [entry for entry in entries if now - entry.made_at > older_than * DAY_S]
    if clean and entries:
        _ask(entries, now, yes)
        remove(entries)
    size = sum(entry.size for entry in entries)
    if as_json:
        described = [_described(entry, now) for entry in entries]
        print_json({"folder": str(folder), "size": size, "removed": clean, "entries": described})
    elif clean:
        print(f"{len(entries)} entries removed from {folder}, {_size(size)}")
    else:
        if entries:
            print_table([HEADING, *(_cells(entry, now) for entry in entries)])
        print(f"{len(entries)} entries in {folder}, {_size(size)}")


def _ask(entries: "list[Entry]", now: float, yes: bool) -> None:
    """Goes on where the person agrees. Raises UserError where there is nobody to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        message = f"`--clean` would remove {len(entries)} entries, and there is nobody to ask"
        raise UserError(message, hint="hone data list --clean --yes", exit_code=2)
    print_table([HEADING, *(_cells(entry, now) for entry in entries)])
    typer.confirm(f"Remove these {len(entries)}?", abort=True)


def _described(entry: "Entry", now: float) -> dict[str, Any]:
    return {
        "key": entry.key,
        "readable": entry.readable,
        "sources": list(entry.sources),
        "samples": entry.samples,
        "tokens": entry.tokens,
        "size": entry.size,
        "age_s": round(now - entry.made_at),
        "kind": entry.kind,
        "template": entry.template,
    }


def _cells(entry: "Entry", now: float) -> tuple[str, ...]:
    first = ", ".join(entry.sources[:2]) + (", ..." if len(entry.sources) > 2 else "")
    return (
        entry.key[:SHOWN_KEY],
        number(entry.samples),
        number(entry.tokens),
        _size(entry.size),
        duration(max(0.0, now - entry.made_at)),
        entry.kind or "-",
        entry.template or "-",
        first if entry.readable else "made by another version of Hone",
    )


def _size(size: int) -> str:
    """Bytes as they are read: "12.3 MB"."""
    for unit, unit_bytes in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= unit_bytes:
            return f"{size / unit_bytes:.1f} {unit}"
    return f"{size} B"
