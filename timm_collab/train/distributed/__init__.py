"""Several processes as one: what one does for all, weights that are sharded over them, signals that stop them.

In: an `Accelerator`. Out: results, tensors and errors that every process agrees on. Models, data and losses never
belong here.
"""
