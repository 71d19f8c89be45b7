"""How much memory a model and a prompt take, from GGUF metadata alone: no native library is loaded.

model.py reads the file, memory.py counts bytes by part, fit.py finds what fits, devices.py knows how
much there is.
"""
