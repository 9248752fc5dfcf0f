"""What a model is asked: which actions, when, and of whom."""
