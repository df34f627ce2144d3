"""Publishing: a finished run becomes a folder that plain timm loads, and the folder a repository on the Hub.

In: the folder of a finished run. Out: an exported folder with weights, config and card, and a commit on the Hub.
Loading what was published never needs this folder: see `timm_collab.pretrained`.
"""
from .errors import HubError
from .export import export_run
from .options import ExportOptions
from .push import PushOptions, push_folder

__all__ = ['ExportOptions', 'HubError', 'PushOptions', 'export_run', 'push_folder']
