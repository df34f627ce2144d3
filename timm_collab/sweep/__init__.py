"""Verify head trees of every timm architecture: `python -m timm_collab.sweep`.

In: names of architectures. Out: a table of those with exact head trees. Training never belongs here.
"""
