"""Try every architecture that timm lists: `python -m timm_collab.sweep`.

In: names of architectures. Out: a table of which make exact head trees. Training never belongs here.
"""
