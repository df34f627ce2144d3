"""Trained heads by name: the catalogue, the download with its checksums, and loading.

In: the name of a published head. Out: a plain timm model, or the tree that it was pruned from. Publishing never belongs
here: that is `hub/`.
"""
