"""User errors (one line on stderr, exit status 2 or 3), and how every process starts and ends."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

PR_SET_PDEATHSIG = 1  # linux/prctl.h
UNFIT = 3  # exit status if the parameters cannot be trained with, whatever the machine's state
# In what Python, NumPy, PyTorch and CUDA raise: names of exceptions, or messages of RuntimeError.
NO_MEMORY = r"MemoryError|out of memory|(allocate|enough) memory|ALLOC_FAILED|bad_alloc"

# Not what an edited model may cause, such as an illegal memory access.
GPU_FAILURE = r"(CUDA|HIP)( driver)? error: .*(launch failure|unknown|ECC|unavailable|lost|ready)"


class UserError(Exception):
    """Something the user can fix.

    subject: the key, file or run that the message is about. Tests assert it, not the sentence.
    """

    status = 2

    def __init__(self, subject: object, message: str) -> None:
        super().__init__(f"{subject}: {message}")
        self.subject = str(subject)
        self.message = message


class NoResultsError(UserError):
    """Results that are not on this machine, or were not executed as they stand: no failure."""


def run(main: Callable[[], object]) -> None:
    """Run `main` as a process, on a terminal of any encoding or without one.

    Exit status: 2 for an error of the user or the system, a GPU included, 3 if the training
    diverges or memory runs out, 130 for Ctrl-C, 141 if no process reads the output, 143 for
    SIGTERM.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    _prepare_output()
    _forget_other_repository()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left when it ends
        sys.exit(128 + signal.SIGPIPE)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(error.status if isinstance(error, UserError) else UserError.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if is_gpu_failure(error) and not is_out_of_memory(error):
            reason = str(error).partition("\n")[0]
            advice = "run the same command again, a training resumes"
            print(f"the GPU failed ({reason}): {advice}", file=sys.stderr)
            sys.exit(UserError.status)
        if not is_out_of_memory(error):
            raise
        keys = "batch_size, num_samples, h_dim, h_layers, eval_samples"
        shared = ", or for a shared GPU GPU_JOBS" if "GPU" in str(error) else ""
        print(f"out of memory: lower {keys}{shared}", file=sys.stderr)
        sys.exit(UNFIT)

    sys.stderr.flush()
    os._exit(0)  # Python would take up to a second to free what the system frees anyway


def is_out_of_memory(error: Exception) -> bool:
    """Whether it means that the memory of the machine or of the GPU was not enough."""
    return re.search(NO_MEMORY, repr(error)) is not None


def without_password(text: str, address: str) -> str:
    """Return `text` in one line without addresses, and without the password of `address`.

    Of a password with special characters, libraries take a part for the host or the port and report
    it: no word of two or more letters is left, in upper or lower case, percent-encoded or not.
    """
    text = re.sub(r"\S*://\S*", "<address>", " ".join(unquote(text).split()))
    # scheme://user:password@host; a password that is not percent-encoded may contain :, / and @.
    credentials = address.partition("://")[2].rpartition("@")[0]
    password = unquote(credentials.partition(":")[2])
    parts = [re.escape(password), *re.findall(r"\w{2,}", password)]
    if len(password) < 2:  # it would be in every word
        return text
    return re.sub("|".join(parts), "<password>", text, flags=re.IGNORECASE)


def is_gpu_failure(error: Exception) -> bool:
    """Whether the GPU or its driver failed, and not the code that it executes."""
    return re.search(GPU_FAILURE, str(error)) is not None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write inside the block (a full disk, say) into a UserError about `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror or error})") from error


def _prepare_output() -> None:
    """Make any text printable, also if stdout or stderr is closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the first file that is opened would take its place
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _forget_other_repository() -> None:
    """Drop what DVC has set, unless for this stage: left over in a shell, or of a pipeline around.

    DVC runs stages in the root and, for experiments, in folders of .dvc/tmp/exps, maybe a link.
    """
    root, here = Path(os.environ.get("DVC_ROOT") or ".").resolve(), Path.cwd()
    is_inside = here == root or here.is_relative_to((root / ".dvc" / "tmp" / "exps").resolve())
    if "DVC_STAGE" not in os.environ or not is_inside:
        for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
            os.environ.pop(name, None)


def die_with_parent(parent: int = 0) -> None:
    """Have Linux kill this process when the one that started it ends, however it ends.

    parent: its number, if that is known: it may have ended before.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent if parent else _is_orphan():
        os._exit(128 + signal.SIGKILL)


def _is_orphan() -> bool:
    """Whether DVC, which had started this process, has ended."""
    if os.getppid() != 1:
        return False
    # In a container, process 1 may be DVC itself.
    with suppress(OSError):
        return b"dvc" not in Path("/proc/1/cmdline").read_bytes()
    return False
