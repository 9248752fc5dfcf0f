"""The exported model as MLflow serves it ("models from code": no pickle travels).

Input: a table with a row a video, given as `bytes`, `url`, `path` or `frames`; of task detection with
`boxes`. Output: a row for each, with labels, a timeline or boxes, or the reason why there is none
(`vidpipe.serving.rows`). Params: what is asked (`vidpipe.serving.queries`). Which paths and URLs are
read, and how much of them, is for who serves the model to say, in its `model_config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from vidpipe.device import choose_device
from vidpipe.inference.given import rules_of
from vidpipe.serving.rows import COLUMNS, Rows
from vidpipe.trained.shelf import Shelf


class VideoClassifier(PythonModel):  # type: ignore[misc]
    # No type hints on `predict`: MLflow would take them for a schema; the signature has one.
    def load_context(self, context: Any) -> None:
        rules = rules_of(context.model_config or {})
        shelf = Shelf(choose_device("auto"))
        self.rows = Rows(shelf.load("model", Path(context.artifacts["package"])), rules)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        rows = model_input.astype(object).where(model_input.notna(), None).to_dict("records")
        asked = {key: value for key, value in (params or {}).items() if value is not None}
        # Objects, since a column of None and numbers would be one of NaN, which is no JSON.
        return pd.DataFrame(self.rows(rows, asked), columns=COLUMNS, dtype=object)


set_model(VideoClassifier())
