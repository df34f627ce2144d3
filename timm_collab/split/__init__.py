"""Split any timm network into segments that run one after the other.

In: a plain network and the names of the modules to split after. Out: a traced chain of segments with the network's own
tensors under their original names, and a list of the points where a network can be split. Heads, losses and training
never belong here, nor does code for a single family of architectures.
"""
