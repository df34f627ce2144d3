"""From examples to batches: datasets, samplers and loaders.

In: splits and transforms. Out: batches of tensors, in an order that depends on seed and epoch alone. How an image is
opened or a label read never belongs here.
"""
