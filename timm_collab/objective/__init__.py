"""Training objectives: losses on the logits of all heads, and the timm task that combines one with a model.

In: logits [H, B, C] and labels. Out: a loss, and the terms of each head. Architectures, data loaders and optimizers
never belong here; code that needs them goes to `train/loop/`.
"""
