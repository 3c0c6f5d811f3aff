"""A git repository with DVC experiments whose results are made up: what differs is known.

The commits have the files that the stages write; a repository takes a second.
"""

import hashlib
import io
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

PARAMS = {
    "dataset": "mnist", "likelihood": "bernoulli", "z_dim": 20, "h_dim": 400, "num_epochs": 12,
    "learning_rate": 0.001, "seed": 0, "device": "auto", "sample_every": 10, "eval_samples": 500,
}  # fmt: skip
PROTOCOL = {"images": "a", "binarization": "b", "likelihood": "bernoulli", "eval_samples": 500}
MODEL, PER_IMAGE = "data/vae.safetensors", "reports/per_image.parquet"


def per_image(effect: float, seed: int, images: int = 400) -> pd.DataFrame:
    """Nats per image: difficulty of the image, `effect`, an effect of the seed (sd 0.1), noise."""
    hard = np.random.default_rng(0).gamma(16, 1.5, images)
    own = np.random.default_rng([seed, round(abs(effect) * 1000), 1])
    kl = 20 + hard / 4 + 2 * effect + own.normal(0, 0.1) + own.normal(0, 0.5, images)
    recon = 44 + hard - effect + own.normal(0, 0.5, images)
    nll = recon + kl - 7 + own.normal(0, 0.2, images)
    columns = {"neg_elbo": recon + kl, "recon": recon, "kl": kl, "nll": nll}
    return pd.DataFrame(columns | {"nll_binarized": nll - 8}).astype("float32")


def metrics_of(values: pd.DataFrame) -> dict[str, float]:
    """evaluation.json: means of the per-image values, and others that are constant."""
    means = values.astype("float64")
    others = {"active_units": 18, "frechet_distance": 7.5, "precision": 0.8, "recall": 0.7}
    return means.mean().to_dict() | means.sem().add_suffix("_se").to_dict() | others


def parquet(values: pd.DataFrame, protocol: Mapping[str, object]) -> bytes:
    table = pa.Table.from_pandas(values, preserve_index=False)
    table = table.replace_schema_metadata({"protocol": json.dumps(protocol)})
    pq.write_table(table, file := io.BytesIO(), write_page_checksum=True)
    return file.getvalue()


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 120), dtype="uint8")
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def reports(metrics: Mapping[str, float], params: Mapping[str, object]) -> dict[str, bytes]:
    """history.csv, bound.csv and kl_per_dimension.csv."""
    epoch, k, rank = np.arange(1, params["num_epochs"] + 1), np.array([1, 10, 100]), np.arange(1, 9)
    train, val = metrics["neg_elbo"] + 60 / epoch, metrics["neg_elbo"] + 40 / epoch
    tables = {
        "history": {"epoch": epoch, "train/neg_elbo": train, "val/neg_elbo": val},
        "bound": {"k": k, "widened": metrics["nll"] + 7 / k},
        "kl_per_dimension": {"rank": rank, "kl": 3.5 * np.exp(-rank / 6)},
    }
    return {
        f"reports/{name}.csv": pd.DataFrame(columns).to_csv(index=False).encode()
        for name, columns in tables.items()
    }


class FakeExperiments:
    """A repository in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / ".dvc").mkdir(parents=True)
        (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
        (root / ".dvc/.gitignore").write_text("/cache\n/tmp\n")
        (root / ".gitignore").write_text("/reports/compare.html\n/mlflow.db\n/mlartifacts\n")
        self.git("init", "-q")

    def git(self, *arguments: str) -> str:
        env = {"GIT_CONFIG_GLOBAL": os.devnull, "PATH": os.environ["PATH"]}
        for who in ("AUTHOR", "COMMITTER"):
            env |= {f"GIT_{who}_NAME": "x", f"GIT_{who}_EMAIL": "x@y.z"}
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def files(
        self, effect: float = 0.0, *, values: pd.DataFrame | None = None, code: str = "x",
        protocol: Mapping[str, object] = PROTOCOL, classifier: str = "c", **params: object,
    ) -> dict[str, bytes]:  # fmt: skip
        """Files of the commit of an experiment; what DVC keeps is put into its cache."""
        params = PARAMS | params
        if values is None:
            values = per_image(effect, params["seed"])
        metrics = metrics_of(values)
        report = {"classifier": {"sha256": classifier}}
        outs = {MODEL: f"{params}{code}".encode(), PER_IMAGE: parquet(values, protocol)}
        pictures = ("generated", "reconstructed", "figures/traversals")
        return {
            "dvc.lock": yaml.safe_dump(self.lock(params, outs, code)).encode(),
            "reports/metrics.json": json.dumps({"test": {"nll": metrics["nll"]}}).encode(),
            "reports/evaluation.json": json.dumps({"test": metrics}).encode(),
            "reports/classifier.json": json.dumps(report).encode(),
            **{f"reports/{name}.png": picture(params["seed"]) for name in pictures},
            **reports(metrics, params),
        }

    def lock(
        self, params: Mapping[str, object], outs: Mapping[str, bytes], code: str
    ) -> dict[str, object]:
        model, values = (self.store(path, content) for path, content in outs.items())
        deps = [{"path": "pipeline/model", "md5": code}]
        train = {"deps": deps, "params": {"params.yaml": dict(params)}, "outs": [model]}
        evaluate = {"deps": [dict(model)], "outs": [values]}
        return {"schema": "2.0", "stages": {"train": train, "evaluate": evaluate}}

    def store(self, path: str, content: bytes) -> dict[str, str]:
        """Put an output into DVC's cache; returns its entry in dvc.lock."""
        md5 = hashlib.md5(content).hexdigest()
        cached = self.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(content)
        return {"path": path, "md5": md5}

    def write(self, files: Mapping[str, bytes]) -> None:
        """Put files into the workspace."""
        for path, content in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(content)

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Commit files on the branch, in place of all earlier results."""
        self.git("rm", "-rq", "--ignore-unmatch", "reports", "dvc.lock")
        self.write(files)
        self.git("add", "-A")
        self.git("commit", "-qm", "x", "--allow-empty")
        return self.git("rev-parse", "HEAD")

    def experiment(self, name: str, files: Mapping[str, bytes]) -> str:
        """Make a DVC experiment: a commit that a ref under refs/exps names."""
        head = self.git("rev-parse", "HEAD")
        commit = self.commit(files)
        self.git("reset", "-q", "--hard", head)
        self.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit)
        return commit
