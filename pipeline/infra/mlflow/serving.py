"""The exported model as MLflow serves it ("models from code": this file travels, no pickle does).

Input: uint8 clips (N, T, 3, H, W) at the model's own size. Output: class probabilities (N, C).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from vidpipe.export.programs import PixelModel
from vidpipe.trained.package import load_package


class VideoClassifier(PythonModel):  # type: ignore[misc]
    # No type hints on `predict`: MLflow would take them for a schema; the signature has one.
    def load_context(self, context: Any) -> None:
        self.classifier = PixelModel(load_package(Path(context.artifacts["package"])))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        clips = torch.from_numpy(np.asarray(model_input))
        with torch.inference_mode():
            return self.classifier(clips).softmax(-1).numpy()


set_model(VideoClassifier())
