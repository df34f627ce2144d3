"""`python -m timm_collab`: the same as the command `timm-collab`."""
from __future__ import annotations

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
