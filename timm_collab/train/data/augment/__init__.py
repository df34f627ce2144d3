"""From pixels to the input of a model: timm's transforms, image by image and for whole batches.

In: Pillow images, or tensors of pixels. Out: normalised tensors. Labels and files never belong here.
"""
