"""A name becomes a GGUF file that is fit to load."""
