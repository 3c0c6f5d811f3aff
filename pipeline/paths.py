"""Every file that stages exchange. Relative to the working directory that DVC gives a stage."""

from pathlib import Path

PARAMS = Path("params.yaml")
DVC_YAML = Path("dvc.yaml")
DVC_LOCK = Path("dvc.lock")

OWN = Path("data/own")  # the user's own images

# data/: read by machines, in DVC's cache
DATASET = Path("data/dataset.safetensors")
MODEL = Path("data/vae.safetensors")
CLASSIFIER = Path("data/classifier.safetensors")
LOGGED = Path("data/logged")  # written by `log`, neither cached nor committed

# reports/: read by people, in git
HISTORY = Path("reports/history.csv")
SAMPLES = Path("reports/samples")
CLASSIFIER_REPORT = Path("reports/classifier.json")
METRICS = Path("reports/metrics.json")  # the headline metrics
EVALUATION = Path("reports/evaluation.json")  # all metrics, with standard errors
PER_IMAGE = Path("reports/per_image.parquet")  # in DVC's cache
BOUND = Path("reports/bound.csv")
KL_PER_DIMENSION = Path("reports/kl_per_dimension.csv")
CLASSES = Path("reports/classes.csv")
GENERATED = Path("reports/generated.png")
RECONSTRUCTED = Path("reports/reconstructed.png")
FIGURES = Path("reports/figures")
SWEEPS = Path("reports/sweeps")  # not committed
COMPARISON = Path("reports/compare.html")  # not committed
