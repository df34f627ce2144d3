"""Cut any network of timm into segments that run one after the other.

In: a plain network and the names of the modules to cut behind. Out: a traced chain of segments that hold the network's
own tensors under their own names, and the list of places where it can be cut. Nothing here knows of heads, losses or
training, and nothing here is written for one family of architectures.
"""
