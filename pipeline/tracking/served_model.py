"""The model as MLflow serves it: logged as code, beside the safetensors file. Nothing is pickled.

vae = mlflow.pyfunc.load_model("models:/MODEL_ID")
images = vae.predict(z)                           # z [n, z_dim], float32 → E[x|z], [n, 784] in [0, 1]
q = vae.predict(x, params={"task": "encode"})     # x [n, 784] in [0, 1] → {"mu", "log_var"}, each [n, z_dim]
again = vae.predict(x, params={"task": "reconstruct"})
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

TASKS = ("generate", "encode", "reconstruct")


class ServedVAE(PythonModel):
    """`generate` (the default), `encode` and `reconstruct`, chosen by the parameter `task`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model file: here and not above, so that logging a model needs no torch."""
        from pipeline.model.vae import load_model  # noqa: PLC0415

        self.vae, _ = load_model(Path(context.artifacts["vae"]))

    # MLflow takes type hints for a signature of its own, np.ndarray apart, and warns where there are none.
    def predict(
        self, context: PythonModelContext | None, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Z [n, z_dim] → E[x|z]; x [n, 784] → μ and log σ² of q(z|x), or E[x|z=μ]. Nothing is drawn at random.

        Raises MlflowException (status 400 from a server) for another task, shape or range.
        """
        import torch  # noqa: PLC0415

        from pipeline.model.likelihood import bernoulli_mean  # noqa: PLC0415

        task = (params or {}).get("task", "generate")
        if task not in TASKS:
            raise MlflowException.invalid_parameter_value(f"task: must be one of {', '.join(TASKS)} (got {task!r})")
        given = np.asarray(model_input, dtype=np.float32)
        name, width = ("z", self.vae.z_dim) if task == "generate" else ("x", self.vae.architecture["x_dim"])
        if given.ndim != 2 or given.shape[1] != width:
            shape = list(given.shape)
            raise MlflowException.invalid_parameter_value(f"{name}: must be [n, {width}] to {task} (got {shape})")
        if name == "z" and not np.isfinite(given).all():
            raise MlflowException.invalid_parameter_value("z: must be finite")
        if name == "x" and not ((given >= 0) & (given <= 1)).all():
            raise MlflowException.invalid_parameter_value("x: must be in [0, 1]: divide bytes by 255")
        with torch.inference_mode():
            values = torch.from_numpy(given)
            if task == "generate":
                return bernoulli_mean(self.vae.decode(values)).numpy()
            mu, log_var = self.vae.encode(values)
            if task == "encode":
                return {"mu": mu.numpy(), "log_var": log_var.numpy()}
            return bernoulli_mean(self.vae.decode(mu)).numpy()


set_model(ServedVAE())
