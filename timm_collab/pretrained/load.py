"""Load trained heads and trees by name, from the catalogue, the Hub or a folder."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_model
from torch import Tensor, nn

from ..model.collab_model import CollabModel
from .catalogue import find_head, list_heads
from .download import CONFIG, TREE, DownloadError, fetch, fetch_head


def load_head(name: str, **kwargs: Any) -> nn.Module:
    """Load the plain timm network of a trained head from the catalogue.

    Its weights come from the package or the Hub, at the revision and with the checksum of the catalogue. Once they are
    in the Hub's cache, no connection is needed.

    Args:
        name: Architecture and tag, see `list_heads`.
        **kwargs: For `timm.create_model`, e.g. another `num_classes`.

    Raises:
        CatalogueError: There is no such head.
        DownloadError: Its files can't be loaded, or have another checksum.
    """
    return timm.create_model(f'local-dir:{fetch_head(find_head(name))}', pretrained=True, **kwargs)


def from_pretrained_tree(source: str | Path, revision: str | None = None) -> CollabModel:
    """Load a trained tree with all heads, to continue training, to prune another head or to use all heads.

    Args:
        source: `user/name` on the Hub, a head of the catalogue, or a folder.
        revision: Branch, tag or commit on the Hub, default the main branch.

    Returns:
        The tree, whose kept head is the published one.

    Raises:
        DownloadError: The files can't be loaded, or there is no tree for the head.
    """
    if revision is None and str(source) in {head.name for head in list_heads()}:
        head = find_head(str(source))
        source, revision = head.folder or str(head.repo), head.revision
    if Path(source).is_dir():
        config_file, tree_file = Path(source) / CONFIG, Path(source) / TREE
        if not (config_file.is_file() and tree_file.is_file()):
            raise DownloadError(f"'{source}' does not have {CONFIG} and {TREE}: it has no tree to load")
    else:
        config_file, tree_file = (fetch(str(source), name, revision) for name in (CONFIG, TREE))
    config = json.loads(config_file.read_text(encoding='utf-8'))
    described = config.get('head_tree')
    if described is None:
        raise DownloadError(f"{CONFIG} of '{source}' does not have the spec of the tree in {TREE}")
    model = CollabModel(
        config['architecture'],
        tree=described['tree'],
        kept_head=described['kept_head'],
        num_classes=config['num_classes'],
        pretrained_cfg={**config['pretrained_cfg'], 'architecture': config['architecture']},
        **config.get('model_args', {}),
    )
    try:
        load_model(model, tree_file)  # tied tensors are in the file under one of their names
    except RuntimeError:  # its message lists every key
        raise DownloadError(f"{TREE} of '{source}' does not match the tree '{described['tree']}'") from None
    return model


class HeadEnsemble(nn.Module):
    """All heads of a tree as one classifier that averages their probabilities.

    It has the cost of the complete tree: every branch is in memory and computed.

    Args:
        model: The tree.
        multi_label: Whether the classes are independent labels.
    """

    def __init__(self, model: CollabModel, multi_label: bool = False) -> None:
        super().__init__()
        self.model = model
        self.multi_label = multi_label

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits `[B, C]` of the mean probability of each class.

        For single labels they are its logarithm: a softmax gives the mean back. For independent labels they are its
        log-odds: a sigmoid gives the mean back.
        """
        logits_HBC = self.model.forward_heads(x)
        if self.multi_label:
            return F.logsigmoid(logits_HBC).logsumexp(dim=0) - F.logsigmoid(-logits_HBC).logsumexp(dim=0)
        return torch.logsumexp(logits_HBC.log_softmax(dim=-1), dim=0) - math.log(self.model.num_heads)
