"""From a path to batches.

In: `data.path` and the other data keys of a recipe. Out: splits with their labels, and loaders of tensors. Every
random draw is keyed by seed, epoch and example. Models and losses never belong here.

In the order of use: `files/` opens a path, `sources` finds its splits and columns, `labels/` makes their labels, and
`splits` holds out validation data. `decoding/` turns encoded images into pixels, once if they fit into memory,
`augment/` turns pixels into the input of a model, and `loading/` makes batches, also of data that is too large to copy
first. `training_data` is all data of a run, `counts` what it consists of. Every random draw is in `random_streams`, the
copy to a device in `transfer`.
"""
