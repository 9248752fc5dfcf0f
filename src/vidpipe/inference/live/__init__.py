"""Predicting on what comes in now: a stream of the network, a camera, standard input."""
