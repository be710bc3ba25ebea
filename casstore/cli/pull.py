"""`casstore pull`: copy refs from another store."""

from casstore.cli.support.options import (
    DebugOption,
    DryRunOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    QuietOption,
    RefsArgument,
    RemoteArgument,
    StoreOption,
)
from casstore.cli.support.session import session
from casstore.cli.support.transfer import bytes_per_second, transfer


def run(
    *,
    remote: RemoteArgument,
    refs: RefsArgument = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    limit: LimitOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Copy refs, all or those named, from a remote store: only what is missing here is fetched."""
    rate = bytes_per_second(limit)
    with session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out:
        opened, created = (
            out.open_or_create() if out.uses_default and not dry_run else (out.open(read_only=dry_run), False)
        )
        if created:
            out.note(f"made your own store at {out.place}.")
        with opened, out.open_remote(remote, opened, read_only=True) as other:
            transfer(
                out, other, opened, refs, label="Pulling", dry_run=dry_run, overwrite=overwrite, limit=rate
            )
