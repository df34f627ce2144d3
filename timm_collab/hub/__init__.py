"""Publishing: a finished run becomes a folder that plain timm loads, and the folder a repository on the Hub.

Loading what was published needs none of this: see `timm_collab.heads`.
"""
from .errors import HubError
from .export import ExportOptions, export_run
from .push import PushOptions, push_folder
from .run import FinishedRun

__all__ = ['ExportOptions', 'FinishedRun', 'HubError', 'PushOptions', 'export_run', 'push_folder']
