"""The stages of dvc.yaml. Each is a process of its own: `python -m pipeline.stages.STAGE`.

A stage is killed together with the DVC process that started it: an orphan would write into the
files of the next run.
"""

import os

from pipeline.errors import die_with_parent

# Here and not in the stage, which first imports PyTorch: until then it would survive for seconds.
if "DVC_STAGE" in os.environ:
    die_with_parent()
