"""From a path to batches.

In: `data.path` and the other data keys of a recipe. Out: splits with their labels, and loaders of tensors. Every
random draw is keyed by seed, epoch and example. Models and losses never belong here.

`readers` and `sources` open a path, `splits` divides it, and `decoded` decodes it (stored on disk by `cache`).
`images`, `batched`, `crops` and `pixels` make batches of it. `streams` reads data that is too large to copy first.
"""
