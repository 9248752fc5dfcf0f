"""A trained model asked by others: what they may ask, and the answer. `vidpipe serve` and the model in
MLflow are two ways to it."""
