"""Publishing: export a finished run to a folder that plain timm loads, and push the folder to the Hub.

In: the folder of a finished run. Out: an exported folder with weights, config and model card, and a commit on the Hub.
Loading published heads never belongs here: see `timm_collab.pretrained`.
"""
from .errors import HubError
from .export import export_run
from .options import ExportOptions
from .push import PushOptions, push_folder

__all__ = ['ExportOptions', 'HubError', 'PushOptions', 'export_run', 'push_folder']
