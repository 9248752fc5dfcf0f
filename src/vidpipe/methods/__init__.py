"""One file a method; `registry` lists them. Nothing is imported here: params are read without torch."""
