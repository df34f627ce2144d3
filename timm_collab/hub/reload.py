"""Load folders with timm and save their logits: a program that runs in its own process, without timm_collab.

It reads `{"folders": [...], "images": file, "logits": file, "plugin": false}` from standard input. With `plugin`, it
imports timm_collab for its architectures; otherwise an imported timm_collab is an error.

Shapes: B images, C classes.
"""
import json
import sys

import timm
import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    """Load each folder and save its logits [B, C] under the folder's index."""
    task = json.load(sys.stdin)
    torch.set_num_threads(1)  # as `check.py` for the logits it compares with
    if task['plugin']:
        __import__('timm_collab')
    images, logits = load_file(task['images']), {}
    with torch.inference_mode():
        for number, folder in enumerate(task['folders']):
            model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
            logits[str(number)] = model(images[str(number)]).float().contiguous()
    if not task['plugin'] and 'timm_collab' in sys.modules:
        raise SystemExit('timm_collab was imported')
    save_file(logits, task['logits'])


if __name__ == '__main__':
    main()
