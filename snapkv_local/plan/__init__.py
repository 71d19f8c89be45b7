"""How much memory a model and a prompt take, from GGUF metadata alone: no native library is loaded.

model.py reads the file, layers.py says where layers are computed, memory.py counts bytes by part and
compute.py those of graphs, fit.py finds what fits, devices.py knows how much there is.
"""
