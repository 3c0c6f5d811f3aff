"""Check the MLflow store against DVC's experiments: one line and one command per problem.

Nothing is changed without --fix. For problems of DVC and git see docs/troubleshooting.md.
"""

import argparse
import sys
from itertools import chain

from pipeline.commands.checks.files import check_files
from pipeline.commands.checks.store import check_store
from pipeline.runtime.files import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--fix", action="store_true", help="end runs that no process works on")
    one.add_argument("--verify", action="store_true", help="also hash all files that DVC recorded")


def main(arguments: argparse.Namespace) -> None:
    """Print every problem. Exits with 1 if one remains."""
    root, remaining = home(), 0
    files = check_files(root) if arguments.verify else ()
    for problem in chain(check_store(root), files):
        if arguments.fix and problem.fix:
            problem.fix()
            print(f"doctor: fixed: {problem.message}", flush=True)
        else:
            remaining += 1
            print(f"doctor: {problem.message}: {problem.command}", flush=True)
    print(f"doctor: {remaining or 'no'} problem{'s' * (remaining != 1)}")
    if remaining:
        sys.exit(1)
