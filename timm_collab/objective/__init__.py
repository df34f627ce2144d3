"""What heads learn: losses over the logits of all heads, and the timm task that joins one with a model.

In: logits [H, B, C] and labels. Out: a loss, and each head's share of it. Nothing here knows of architectures, data
loaders or optimizers; whatever must know them belongs in `train/loop/`.
"""
