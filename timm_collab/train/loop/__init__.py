"""The training loop: epochs, the training step, evaluation, and what changes in their course.

In: a model, data loaders and a recipe. Out: a row of scores for each epoch, states for checkpoints, a trained model.
Writing files never belongs here: what a run leaves on disk is the business of `record/` and `checkpoint/`.
"""
