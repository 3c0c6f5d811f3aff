"""What a trained model is worth: measured the same way, with the same noise, for every run."""

import torch
from torch import Tensor

from pipeline.vae.likelihood import bernoulli_mean, bernoulli_recon
from pipeline.vae.mnist import to_unit
from pipeline.vae.model import VAE, reparameterize
from pipeline.vae.objective import gaussian_kl
from pipeline.vae.randomness import PROTOCOL_SEED, standard_normal

BATCH = 1000


@torch.no_grad()
def evaluate(model: VAE, images: Tensor) -> dict[str, float | int]:
    """Means over `images`, uint8 [N, D] on the model's device: recon, kl, neg_elbo in nats per image, mse per pixel.

    One z ~ q(z|x) is *sampled* for an image, always with the same noise. At z = μ the bound would read about 10 nats
    too good: it is no bound there.
    """
    eps = standard_normal((len(images), model.z_dim), PROTOCOL_SEED, "evaluate").to(images.device)
    rows = []
    for batch, batch_eps in zip(images.split(BATCH), eps.split(BATCH), strict=True):
        x = to_unit(batch)
        mu, log_var = model.encode(x)
        logits = model.decode(reparameterize(mu, log_var, batch_eps))
        mse = (bernoulli_mean(logits) - x).square().mean(dim=-1)
        rows.append(torch.stack([bernoulli_recon(logits, x), gaussian_kl(mu, log_var), mse], dim=-1))
    recon, kl, mse = torch.cat(rows).cpu().numpy().mean(axis=0, dtype="float64").tolist()
    return {"neg_elbo": recon + kl, "recon": recon, "kl": kl, "mse": mse, "num_images": len(images)}
