"""The usual script for this model, which a user would start from.

torchvision's MNIST with ToTensor, batches of 128 from a shuffling DataLoader, 784-400-20-400-784
with ReLU, binary cross-entropy of probabilities, Adam, two pictures at the end of an epoch.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.utils import save_image

LOG_EVERY = 100  # steps


class Baseline(nn.Module):
    """The network of the script."""

    def __init__(self, x_dim: int = 784, h_dim: int = 400, z_dim: int = 20) -> None:
        super().__init__()
        self.encoder = nn.Linear(x_dim, h_dim)
        self.mu = nn.Linear(h_dim, z_dim)
        self.log_var = nn.Linear(h_dim, z_dim)
        self.decoder = nn.Sequential(
            nn.Linear(z_dim, h_dim), nn.ReLU(True), nn.Linear(h_dim, x_dim), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X [B, 784] to probabilities, μ and log σ²."""
        h = F.relu(self.encoder(x))
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.randn_like(mu) * torch.exp(log_var / 2)
        return self.decoder(z), mu, log_var


def epochs(
    root: Path, pictures: Path, device: torch.device, batch_size: int = 128
) -> Iterator[float]:
    """Train one epoch per turn; yields its last loss per image.

    root: the folder in which torchvision finds MNIST.
    """
    data = datasets.MNIST(root, train=True, transform=transforms.ToTensor())
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    model = Baseline().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        for i, (images, _) in enumerate(loader, 1):
            x = images.to(device).view(-1, 784)
            p, mu, log_var = model(x)
            recon = F.binary_cross_entropy(p, x, reduction="sum")
            kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
            loss = recon + kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if i % LOG_EVERY == 0:
                recon.item(), kl.item()
        with torch.no_grad():
            z = torch.randn(batch_size, 20).to(device)
            save_image(model.decoder(z).view(-1, 1, 28, 28), pictures / "generated.png")
            pairs = torch.cat([x.view(-1, 1, 28, 28), model(x)[0].view(-1, 1, 28, 28)], dim=3)
            save_image(pairs, pictures / "reconstructed.png")
        yield loss.item() / len(x)
