"""Experiments that nobody has trained: commits with files as the stages write them, of results that are made up.

What differs between them is known, and they are there in a second.
"""

import hashlib
import io
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from ruamel.yaml import YAML

IMAGES = 400
PARAMS = {
    "dataset": "mnist", "val_size": 100, "z_dim": 20, "h_dim": 400, "num_epochs": 12, "learning_rate": 0.001, "seed": 0,
    "eval_samples": 500, "eval_proposal_scale": 1.4,
}  # fmt: skip
PROTOCOL = {"images": "a" * 64, "binarization": "b" * 64, "eval_samples": 500, "eval_proposal_scale": 1.4}
STAGES = """\
stages:
  train:
    cmd: "true"
    outs: [data/model/vae.safetensors]
  evaluate:
    cmd: "true"
    outs: [reports/per_image.parquet]
"""


def per_image(effect: float, seed: int, images: int = IMAGES, spread: float = 0.1) -> dict[str, np.ndarray]:
    """Nats per image: what makes an image hard, the same for all; `effect`; the seed's own, sd `spread`; noise."""
    hard = np.random.default_rng(0).gamma(16, 1.5, images)
    own = np.random.default_rng([seed, round(abs(effect) * 1000), 1])
    kl = 20 + hard / 4 + 2 * effect + own.normal(0, spread) + own.normal(0, 0.5, images)
    recon = 44 + hard - effect + own.normal(0, 0.5, images)
    neg_elbo = recon + kl
    nll = neg_elbo - 7 + own.normal(0, 0.2, images)
    found = {"neg_elbo": neg_elbo, "recon": recon, "kl": kl, "nll": nll, "nll_binarized": nll - 8}
    return {name: values.astype("float32") for name, values in found.items()}


def metrics_of(values: Mapping[str, np.ndarray], seed: int) -> dict[str, float]:
    """metrics.json's, the paired ones as means of the per-image values, the others out of the air."""
    means = {name: float(column.mean(dtype="float64")) for name, column in values.items()}
    errors = {f"{name}_se": float(column.std(ddof=1) / np.sqrt(len(column))) for name, column in values.items()}
    own = np.random.default_rng([seed, 2])
    others = {
        "neg_iwae": means["nll"] + 0.5, "nll_prior": means["nll"] + 150, "jensen_gap": 7.0, "mutual_information": 9.2,
        "total_correlation": 4.2, "dimension_wise_kl": 10.0, "knn_accuracy": 0.95, "probe_accuracy": 0.9, "ess": 60.0,
    }  # fmt: skip
    others = {name: value * (1 + own.normal(0, 0.01)) for name, value in others.items()}
    errors |= {f"{name}_se": abs(value) * 0.01 for name, value in others.items()}
    single = {"mse": 0.0115, "active_units": 18, "fd_judge": 7.5 + own.normal(0, 0.3), "precision": 0.8, "recall": 0.7}
    single |= {"density": 0.9, "coverage": 0.8, "num_images": len(values["nll"])}
    return means | errors | others | single


def parquet(values: Mapping[str, np.ndarray], protocol: Mapping[str, object]) -> bytes:
    """per_image.parquet."""
    table = pa.table(dict(values)).replace_schema_metadata({"protocol": json.dumps(protocol)})
    pq.write_table(table, file := io.BytesIO())
    return file.getvalue()


def csv(**columns: object) -> bytes:
    """A table as the stages write it."""
    rows = zip(*columns.values(), strict=True)
    head = ",".join(columns).replace("__", "/")
    return "\n".join([head, *(",".join(map(repr, map(float, row))) for row in rows), ""]).encode()


def picture(seed: int) -> bytes:
    """A PNG."""
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 120), dtype="uint8")
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def tables(metrics: Mapping[str, float], params: Mapping[str, object]) -> dict[str, bytes]:
    """history.csv, bound.csv, kl_per_dimension.csv and classes.csv."""
    epoch, k = np.arange(1, int(params["num_epochs"]) + 1), np.array([1, 2, 5, 10, 20, 50, 100, 200, 500])
    train, val = metrics["neg_elbo"] + 60 / epoch, metrics["neg_elbo"] + 1 + 40 / epoch
    nan = np.full(len(epoch), np.nan)
    val = val if params["val_size"] else nan
    history = {"epoch": epoch, "train__recon": train - 25, "train__kl": nan * 0 + 25, "train__neg_elbo": train}
    history |= {"val__recon": val - 25, "val__kl": val * 0 + 25, "val__neg_elbo": val}
    wide, plain = metrics["nll"] + 7 / k**0.6, metrics["nll"] + 0.4 + 6.6 / k**0.45
    bound = {"k": k, "widened": wide, "widened_se": 0.3 / np.sqrt(k), "plain": plain, "plain_se": 0.3 / np.sqrt(k)}
    bound |= {"prior": wide + 150, "prior_se": k * 0 + 0.5}
    rank = np.arange(1, int(params["z_dim"]) + 1)
    kl = {"rank": rank, "dimension": rank[::-1] - 1, "kl": 3.5 * np.exp(-rank / 6), "active": rank < 18}
    shares = np.random.default_rng(int(metrics["neg_elbo"])).dirichlet(np.full(10, 200))
    classes = {"digit": np.arange(10), "samples": shares, "test": np.full(10, 0.1)}
    named = {"history": history, "bound": bound, "kl_per_dimension": kl, "classes": classes}
    return {f"reports/{name}.csv": csv(**columns) for name, columns in named.items()}


class Fabricated:
    """A repository of made-up experiments."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / ".dvc" / "cache" / "files" / "md5"
        (root / ".dvc").mkdir(parents=True)
        (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
        (root / ".dvc" / ".gitignore").write_text("/cache\n/tmp\n/config.local\n")
        (root / "dvc.yaml").write_text(STAGES)
        (root / ".gitignore").write_text("/data/model\n/reports/per_image.parquet\n/mlflow.db\n/mlartifacts\n")
        self.git("init", "-q")

    def git(self, *arguments: str) -> str:
        env = {"GIT_CONFIG_GLOBAL": os.devnull, "PATH": os.environ["PATH"]}
        env |= {f"GIT_{who}_{what}": "x@y.z" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def files(
        self, params: Mapping[str, object], effect: float = 0.0, *, old: bool = False, code: str = "x",
        protocol: Mapping[str, object] = PROTOCOL, judge: str = "j", images: int = IMAGES, spread: float = 0.1,
        pictures: Mapping[str, bytes] | None = None,
    ) -> dict[str, bytes]:  # fmt: skip
        """What the commit of an experiment has, by path; what DVC keeps is put into its cache.

        `old`: as the project wrote it before there were per-image values.
        """
        seed = int(params["seed"])
        values = per_image(effect, seed, images, spread)
        metrics = metrics_of(values, seed)
        outs = {"data/model/vae.safetensors": b"model"}
        files = tables(metrics, params)
        if old:
            metrics = {name: metrics[name] for name in ("neg_elbo", "recon", "kl", "mse", "num_images")}
            files = {name: files[name] for name in ("reports/history.csv",)}
        else:
            outs["reports/per_image.parquet"] = parquet(values, protocol)
            floor = {"fd_judge": 1.2, "precision": 0.9, "recall": 0.9, "density": 1.0, "coverage": 0.95}
            said = {"judge": {"accuracy": 0.99, "sha256": judge}, "floor": floor}
            files["reports/judge.json"] = json.dumps(said).encode()
        drawn = {"generated": picture(seed), "reconstructed": picture(seed + 1)}
        drawn |= {} if old else {"figures/traversals": picture(2)}
        files |= {f"reports/{name}.png": png for name, png in (pictures or drawn).items()}
        files["reports/metrics.json"] = json.dumps({"test": metrics}).encode()
        files["params.yaml"] = dumped(dict(params))
        files["dvc.lock"] = dumped(self.lock(params, outs, code))
        return files

    def lock(self, params: Mapping[str, object], outs: Mapping[str, bytes], code: str) -> dict[str, object]:
        """dvc.lock."""
        entries = {}
        for path, content in outs.items():
            md5 = hashlib.md5(content).hexdigest()
            stored = self.cache / md5[:2] / md5[2:]
            stored.parent.mkdir(parents=True, exist_ok=True)
            stored.write_bytes(content)
            entries[path] = {"path": path, "hash": "md5", "md5": md5, "size": len(content)}
        deps = [{"path": "pipeline/stages/train.py", "hash": "md5", "md5": hashlib.md5(code.encode()).hexdigest(), "size": 1}]
        model = "data/model/vae.safetensors"
        others = [entry for path, entry in entries.items() if path != model]
        train = {"cmd": "true", "deps": deps, "params": {"params.yaml": dict(params)}, "outs": [entries[model]]}
        evaluate = train | {"outs": others}
        # DVC's schema has no place for what YAML would write as an alias.
        return json.loads(json.dumps({"schema": "2.0", "stages": {"train": train, "evaluate": evaluate}}))

    def commit(self, files: Mapping[str, bytes]) -> str:
        """A commit on the branch."""
        self.git("rm", "-rq", "--ignore-unmatch", "reports")
        for path, content in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(content)
        self.git("add", "-A")
        self.git("commit", "-qm", "x", "--allow-empty")
        return self.git("rev-parse", "HEAD")

    def experiment(self, name: str, files: Mapping[str, bytes]) -> str:
        """A DVC experiment: a commit that a ref names, and no branch."""
        head = self.git("rev-parse", "HEAD")
        commit = self.commit(files)
        self.git("reset", "-q", "--hard", head)
        self.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit)
        return commit

    def lose(self, path: str, commit: str) -> None:
        """Have DVC's cache lose a file of a commit."""
        lock = YAML(typ="safe", pure=True).load(self.git("show", f"{commit}:dvc.lock"))
        (md5,) = {out["md5"] for stage in lock["stages"].values() for out in stage["outs"] if out["path"] == path}
        (self.cache / md5[:2] / md5[2:]).unlink()


def dumped(values: dict[str, object]) -> bytes:
    """YAML, as DVC writes it."""
    YAML(pure=True).dump(values, file := io.BytesIO())
    return file.getvalue()
