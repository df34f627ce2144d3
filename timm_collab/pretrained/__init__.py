"""Trained heads by name: the catalogue, the download with checksums, and loading.

In: the name of a published head. Out: a plain timm model, or the tree that it was pruned from. Publishing never
belongs here, but in `hub/`.
"""
