"""`vidpipe tune --offsets`: which heads look at which frames, as a command that writes them down."""

from __future__ import annotations

import shlex
import shutil

from pipeline.infra import offsets
from pipeline.infra.console import console
from pipeline.infra.stopping import Interrupted, StopRequest, asked
from pipeline.infra.training_folder import alone
from pipeline.infra.training_setup import covering, with_method_options
from pipeline.infra.workspace import Workspace, data_hash
from vidpipe.config.identity import config_hash
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.methods.config import OffsetBudget, STDHAConfig
from vidpipe.params import Params, deciding_sections


def run(
    params: Params,
    method: str,
    share: float | None,
    reach: int | None,
    max_epochs: int | None,
    workspace: Workspace,
) -> str:
    """Find the offsets, leave them with their picture in `results/offsets`, and return the command that
    writes them into the params file.

    Args:
        share: of all heads, at most, that look at other frames; None: as `head_offsets` has it, or 1/3.
        reach: largest |dt|; None: as `head_offsets` has it, or 2.
        max_epochs: of the search's training; None: `train.epochs`.

    Raises:
        VidpipeError: for a method without shifted heads, or a budget of none.
    """
    config = params.method(method)
    if not isinstance(config, STDHAConfig):
        raise VidpipeError(f"method {method}: it has no head_offsets to search")
    given = config.searched or OffsetBudget()
    budget = OffsetBudget(
        share=given.share if share is None else share, reach=given.reach if reach is None else reach
    )
    params = with_method_options(params, method, head_offsets=budget)
    if max_epochs is not None:
        warmup = params.train.warmup_epochs * max_epochs / params.train.epochs
        train = {"epochs": max_epochs, "steps": None, "warmup_epochs": warmup}
        params = params.model_copy(update={"train": params.train.model_copy(update=train)})
    covering(params, method)  # refuses before anything is begun
    identity = config_hash(
        *(method, deciding_sections(params, "train", method), params.backbone.weights),
        data_hash(workspace, params),
    )
    name = f"offsets-{method}-{identity}"
    folder = workspace.ray / name
    with alone(folder), StopRequest(folder / "stop"):
        try:
            found = offsets.search(params, method, workspace, name, stop=asked(folder / "stop"))
        except TrainingStopped:
            raise Interrupted(
                130, f"stopped, and saved in {folder}; run the same command again to go on"
            ) from None
        picture = offsets.publish(found, workspace)
        shutil.rmtree(folder)
    console.print(str(picture))
    return (
        f"vidpipe params --write --set {shlex.quote(f'methods.{method}.head_offsets={found.text}')}"
    )
