"""What the sections of params.yaml are made of; `vidpipe.params` assembles the sections."""
