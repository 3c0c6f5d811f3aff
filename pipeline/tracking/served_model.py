"""The model as MLflow serves it: logged as code next to the safetensors file. Nothing is pickled.

vae = mlflow.pyfunc.load_model("models:/MODEL_ID")
images = vae.predict(z)  # z [n, z_dim], float32 -> E[x|z], [n, D] in [0, 1]
q = vae.predict(x, params={"task": "encode"})  # x [n, D] in [0, 1] -> "mu", "log_var", [n, z_dim]
again = vae.predict(x, params={"task": "reconstruct"})
sevens = vae.predict(z, params={"label": 7})  # a conditional model needs one, for each task
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
        from pipeline.model.vae import load_vae  # noqa: PLC0415

        self.vae = load_vae(Path(context.artifacts["vae"]))

    # MLflow would take other type hints for a signature, and warns if there are none.
    def predict(
        self, context: PythonModelContext | None, model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray | dict[str, np.ndarray]:  # fmt: skip
        """Map z [n, z_dim] to E[x|z], or x [n, D] to μ and log σ² of q(z|x), or to E[x|z=μ].

        Nothing is random. Raises MlflowException (status 400 from a server) for another task,
        label, shape or range.
        """
        import torch  # noqa: PLC0415

        from pipeline.model.network import Batch  # noqa: PLC0415

        task = (params or {}).get("task", "generate")
        values = torch.from_numpy(self._checked(model_input, task))
        y = torch.full((len(values),), self._checked_label((params or {}).get("label", -1)))
        with torch.inference_mode():
            if task == "generate":
                return self.vae.mean(values, y).numpy()
            posterior = self.vae.encode(Batch(values, y))
            if task == "encode":
                return {name: value.numpy() for name, value in posterior._asdict().items()}
            return self.vae.mean(posterior.mu, y).numpy()

    def _checked(self, model_input: np.ndarray, task: str) -> np.ndarray:
        if task not in TASKS:
            raise _invalid(f"task: must be one of {', '.join(TASKS)} (got {task!r})")
        values = np.asarray(model_input, dtype=np.float32)
        architecture = self.vae.architecture
        takes_z = task == "generate"
        name, width = ("z", architecture.z_dim) if takes_z else ("x", architecture.num_pixels)
        if values.ndim != 2 or values.shape[1] != width:
            raise _invalid(f"{name}: must be [n, {width}] to {task} (got {list(values.shape)})")
        if not np.isfinite(values).all():
            raise _invalid(f"{name}: must be finite")
        if name == "x" and ((values < 0) | (values > 1)).any():
            raise _invalid("x: must be in [0, 1]: divide bytes by 255")
        return values

    def _checked_label(self, label: int) -> int:
        allowed = range(self.vae.architecture.num_classes) or (-1,)
        if label not in allowed:
            raise _invalid(f"label: must be one of {', '.join(map(str, allowed))} (got {label})")
        return label


def _invalid(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


set_model(ServedVAE())
