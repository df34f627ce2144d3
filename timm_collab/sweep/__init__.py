"""Try every architecture that timm lists: `python -m timm_collab.sweep`."""
