"""The training loop and what it leaves on disk. Knows nothing of Ray or MLflow."""
