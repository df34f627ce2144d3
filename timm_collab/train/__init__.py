"""Training on Accelerate: a thin user of the library, run as `python -m timm_collab.train --config quickstart`."""
from .config import TrainConfig
from .errors import TrainError

__all__ = ['TrainConfig', 'TrainError']
