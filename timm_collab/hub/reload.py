"""Load folders with timm and note their logits: run as a program of its own, from which timm_collab is absent.

It reads `{"folders": [...], "images": file, "logits": file, "plugin": false}` from the standard input. `plugin` says
that the architectures need timm_collab to be loaded; otherwise its presence is an error.

Shapes: B images, C classes.
"""
import json
import sys

import timm
import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    """Load each folder and save its logits [B, C] under the folder's number."""
    task = json.load(sys.stdin)
    torch.set_num_threads(1)  # as the other side of the comparison
    if task['plugin']:
        __import__('timm_collab')
    images, logits = load_file(task['images']), {}
    with torch.inference_mode():
        for number, folder in enumerate(task['folders']):
            model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
            logits[str(number)] = model(images[str(number)]).float().contiguous()
    if not task['plugin'] and 'timm_collab' in sys.modules:
        raise SystemExit('timm_collab was loaded')
    save_file(logits, task['logits'])


if __name__ == '__main__':
    main()
