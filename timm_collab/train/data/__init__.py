"""From a path to batches.

In: `data.path` and the recipe's data keys. Out: splits with their labels, and loaders of tensors whose every random
draw is keyed by seed, epoch and example. Models and losses never belong here.

A path is read by `readers` and `sources`, divided by `splits`, decoded by `decoded` (kept by `cache`), and turned into
batches by `images`, `batched`, `crops` and `pixels`; `streams` reads what doesn't fit.
"""
