"""`casstore push`: copy refs to another store."""

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
    """Copy refs, all or those named, to a remote store: only what it lacks is sent."""
    rate = bytes_per_second(limit)
    with (
        session(store=store, as_json=as_json, quiet=quiet, debug=debug) as out,
        out.open(read_only=dry_run) as opened,
        out.open_remote(remote, opened, read_only=dry_run) as other,
    ):
        transfer(out, opened, other, refs, label="Pushing", dry_run=dry_run, overwrite=overwrite, limit=rate)
