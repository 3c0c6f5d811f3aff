"""Real MNIST, whole and as a small subset of the same files with sums of its own."""

import hashlib
import os
import struct
from pathlib import Path

import pytest

from pipeline.download import fetch, read_sums, sources
from pipeline.vae.mnist import load_images

ROOT = Path(__file__).parents[1]
SUMS = ROOT / "pipeline" / "mnist.sha256"


@pytest.fixture(scope="session")
def mnist(request) -> Path:
    """The four real files: taken from data/raw where the pipeline has run, else fetched once into pytest's cache."""
    folder = Path(request.config.cache.mkdir("mnist"))
    local = ROOT / "data" / "raw"
    fetch(read_sums(SUMS), folder, sources(str(local) if local.exists() else os.environ.get("MNIST_MIRROR", "")))
    return folder


@pytest.fixture(scope="session")
def small_mnist(mnist, tmp_path_factory) -> Path:
    """The first 600 training and 200 test images with their labels, as IDX files, and `mnist.sha256` beside them."""
    folder = tmp_path_factory.mktemp("small")
    lines = []
    for name in read_sums(SUMS):
        count = 600 if name.startswith("train") else 200
        raw = (mnist / name).read_bytes()
        header = 4 + 4 * raw[3]
        item = 784 if "images" in name else 1
        content = raw[:4] + struct.pack(">I", count) + raw[8 : header + count * item]
        (folder / name).write_bytes(content)
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    (folder / "mnist.sha256").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def small_images(small_mnist):
    return load_images(small_mnist, "train")
