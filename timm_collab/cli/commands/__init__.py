"""The commands of `timm-collab`, one module each."""
