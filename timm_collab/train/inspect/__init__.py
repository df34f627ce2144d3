"""What a run would read, without training: counts of all images, and a sheet of some as the network sees them.

In: the data keys of a recipe, and for the sheet those of its augmentation and model. Out: an `Inspection`, and a
picture. Nothing is trained or stored beside that picture, and nothing is printed.
"""
from .inspection import Inspection, LabelColumn, inspect_data
from .sheet import Sheet, draw_sheet

__all__ = ['Inspection', 'LabelColumn', 'Sheet', 'draw_sheet', 'inspect_data']
