"""What a person did wrong, said in one line; a traceback is for what we did wrong."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """Something handed in from outside is wrong. The message is one line and names the file or the key."""


def run(main: Callable[[], None]) -> None:
    """Run a verb: an InputError becomes one line on stderr and exit status 2, Ctrl-C becomes 130."""
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
