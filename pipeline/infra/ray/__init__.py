"""The only folder that imports Ray. Here stand the settings that Ray reads when it is imported."""

import os

# It would otherwise report usage over the network.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# On a busy machine its HTTP proxy takes longer to start than the 5 s after which it would be killed.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")
