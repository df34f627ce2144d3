"""From a path to batches.

In: `data.path` and the other data keys of a recipe. Out: splits with their labels, and loaders of tensors. Every
random draw is keyed by seed, epoch and example. Models and losses never belong here.

In the order of use: `readers` opens a path, with `folders` for images in class folders, `tables` for parquet, arrow and
tar files, `file_lists` for CSV and JSON lines, and `timm_readers` for the rest of timm's. `sources` finds its splits
and columns, `labels` and `noise` make its labels, and `splits` holds out validation data. `image_split` decodes an
image; `decoded` decodes all of them once, and `cache` keeps that on disk. `preprocess` makes timm's transforms;
`crops`, `resample` and `pixels` do the same on whole batches, for `batched`. `images` has the data sets and loaders,
`streaming` those of data that is too large to copy first, and `training_data` all data of a run. Every random draw is
in `random_streams`, the copy to a device in `transfer`.
"""
