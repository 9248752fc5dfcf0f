"""The only folder that imports Ray. Here stand the settings that Ray reads when it is imported."""

import os

# It would otherwise report usage over the network.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
