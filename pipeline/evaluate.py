"""Stage `evaluate`: the trained VAE on the test split, which is used here and nowhere else."""

from pipeline.errors import run, writing
from pipeline.params import load_params

if __name__ == "__main__":
    run(load_params)  # what is wrong in params.yaml is said before the seconds that torch takes to import

import json
from pathlib import Path

from pipeline.vae.device import prepare_device
from pipeline.vae.figures import save_grid, save_pairs
from pipeline.vae.metrics import evaluate
from pipeline.vae.mnist import load_images, to_unit
from pipeline.vae.model import load_model
from pipeline.vae.sampling import generate, reconstruct

RAW = Path("data/raw")
MODEL = Path("data/model/vae.safetensors")
METRICS = Path("reports/metrics.json")
GENERATED = Path("reports/generated.png")
RECONSTRUCTED = Path("reports/reconstructed.png")


def main() -> None:
    """Read the model and the test images, write the metrics and the two pictures."""
    params = load_params()
    device = prepare_device(params.device, said_in="params.yaml")
    images = load_images(RAW, "test")
    model, _ = load_model(MODEL)
    model.to(device)

    test = evaluate(model, images.to(device))
    with writing(METRICS.parent):
        METRICS.parent.mkdir(parents=True, exist_ok=True)
        METRICS.write_text(json.dumps({"test": test}, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        save_grid(generate(model, 128), GENERATED)
        save_pairs(to_unit(images[:64]), reconstruct(model, images[:64]), RECONSTRUCTED)

    print(
        "evaluate: −ELBO {neg_elbo:.2f} = recon {recon:.2f} + KL {kl:.2f} nats per image, "
        "mse {mse:.5f} per pixel, over {num_images} test images".format(**test)
    )
    print(f"evaluate: wrote {METRICS}, {GENERATED} and {RECONSTRUCTED}")


if __name__ == "__main__":
    run(main)
