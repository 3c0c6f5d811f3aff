"""How a verb runs and ends; tests of the stages have what it says of a person's mistakes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_garbage_is_collected_while_a_verb_is_at_it_and_at_no_other_time():
    """Neither while it imports nor when the process ends, which would take a second of every stage."""
    code = """if True:
        import gc
        from pipeline.errors import run
        said = [gc.isenabled()]
        run(lambda: said.append(gc.isenabled()))
        said.append(gc.isenabled())
        run(lambda: said.append(gc.isenabled()))
        print(*said, gc.get_freeze_count() > 1000)
    """
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.split() == ["True", "True", "False", "True", "True"]
