"""The view of an experiment that compares its methods: columns, order, and parallel coordinates.

MLflow's table of runs begins without a metric, and its charts without parallel coordinates. What a
person chooses there is shared as a tag of the experiment, which its page reads by a key in its address.
"""

from __future__ import annotations

import json

KEY = "methods"
METRICS = ("top1", "top1_low", "top1_high", "map", "tunable_m", "gflops", "latency_ratio")
PARAMS = ("method", "backbone", "num_frames", "lr")
AXES = ("tunable_m", "gflops", "latency_ratio", "top1")
SECTION = "vidpipe-methods"


def view_tag() -> dict[str, str]:
    """Of an experiment, for `#/experiments/ID/runs?viewStateShareKey=methods` of MLflow 3.17."""
    chart = {
        **{"type": "PARALLEL", "uuid": "vidpipe-parallel", "metricSectionId": SECTION},
        **{"deleted": False, "isGenerated": False, "showAllRuns": False, "runsCountToCompare": 10},
        **{"selectedParams": ["method"], "selectedMetrics": list(AXES)},
    }
    section = {
        **{"uuid": SECTION, "name": "Methods", "display": True},
        **{"isReordered": False, "deleted": False, "isGenerated": False},
    }
    state = {
        # The stages below each model's row have no accuracy of their own.
        "searchFilter": "tags.`vidpipe.stage` = 'model'",
        **{"orderByKey": "metrics.`top1`", "orderByAsc": False, "startTime": "ALL"},
        **{"lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": []},
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in METRICS),
            *(f"params.`{name}`" for name in PARAMS),
        ],
        **{"compareRunCharts": [chart], "compareRunSections": [section]},
        **{"viewMaximized": False, "runListHidden": False, "runsHiddenMode": "FIRST_10_RUNS"},
        **{"runsExpanded": {}, "runsPinned": [], "runsHidden": [], "groupsExpanded": {}},
        **{"autoRefreshEnabled": True, "groupBy": None},
    }
    return {f"mlflow.sharedViewState.{KEY}": json.dumps(state)}
