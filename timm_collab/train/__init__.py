"""Training on Accelerate: a thin user of the library, run as `python -m timm_collab.train --config quickstart`.

In: a recipe. Out: the folder of a finished run. The library outside of this folder never needs accelerate or
datasets, and nothing of the method itself belongs here.

`run.py` is the story of a run; `prepare.py` makes what it starts from, `loop/` trains, `record/` writes down.
"""
from .config import TrainConfig
from .errors import TrainError

__all__ = ['TrainConfig', 'TrainError']
