"""`vidpipe serve`: models behind HTTP. `web` is the API, `bodies` reads a request,
`service` holds the models and decoders, `run` starts them on Ray Serve (`infra/ray/serve.py`)."""
