"""What kills, moves and mishaps have left behind: a line each, with the command that mends it.

Looking changes nothing. `--fix` does what is safe, and nothing of it deletes a result or an edit: it ends runs that
nobody trains, puts HEAD back on its branch, removes locks of processes that are gone and renames a stale `mlruns/`.
While DVC is at work here, what it may be using is neither judged nor touched. `--verify` hashes all results anew.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.checks.content import check_content
from pipeline.commands.checks.finding import Finding
from pipeline.commands.checks.processes import check_stages
from pipeline.commands.checks.store import check_mlruns, check_store
from pipeline.commands.checks.workspace import check_folders, check_head, check_locks, check_queue
from pipeline.errors import InputError, run
from pipeline.runtime.files import home


def main() -> None:
    """Say what is found, mend what can be mended if that is wanted; exit status 1 where something is left."""
    match sys.argv[1:]:
        case [] | ["--fix"] | ["--verify"] as options:
            fix = options == ["--fix"]
        case _:
            raise InputError("usage: python -m pipeline.commands.doctor [--fix | --verify]")
    found = mended = 0
    for finding in check_content(home()) if options == ["--verify"] else examine(home()):
        done = fix and finding.mend()
        said = "mended: " if done else "note: " if finding.remark else ""
        print(f"doctor: {said}{finding.what}" + ("" if done else f": {finding.command}"), flush=True)
        found, mended = found + (not finding.remark), mended + done
    healthy = "every byte is what DVC recorded" if options == ["--verify"] else "nothing to mend"
    print(f"doctor: {found} found, {mended} mended" if found else f"doctor: {healthy}")
    if found > mended:
        sys.exit(1)


def examine(root: Path) -> Iterator[Finding]:
    """Everything that is found, one after the other; a store that is away hides nothing but what is in it."""
    yield from check_stages(root)
    yield from check_queue(root)
    yield from check_folders(root)
    yield from check_head(root)
    yield from check_locks(root)
    yield from check_mlruns(root)
    yield from check_store(root)


if __name__ == "__main__":
    run(main)
