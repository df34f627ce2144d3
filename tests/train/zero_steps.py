"""`python -m tests.train.zero_steps OUTPUT CASES [zero]`: updates, saving and loading, by one of two processes.

For each case it makes two updates, keeps the state, makes a third, and makes that again from the state: it must come
out the same, bit for bit. The main process writes all states, for the test to compare those of DeepSpeed and of DDP.
"""
from __future__ import annotations

import copy
import gc
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.train.toys import make_data, make_model
from tests.train.zeroed import pretend
from timm_collab.train import TrainConfig
from timm_collab.train import updater as updates
from timm_collab.train.checkpoint import pack, unpack
from timm_collab.train.meter import ExplodedLossError
from timm_collab.train.parse import parse_config
from timm_collab.train.prepare import make_accelerator
from timm_collab.train.processes import share_tensors
from timm_collab.train.teacher import Teacher
from timm_collab.train.updater import Updater


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they are now: weights go on changing."""
    return {key: tensor.clone() for key, tensor in tensors.items()}


class Process:
    """One of two processes, with networks that each case has a copy of."""

    def __init__(self, uses_zero: bool) -> None:
        self.uses_zero = uses_zero
        self.networks: dict[str, nn.Module] = {
            'collab_test_vit': make_model(2, 'collab_test_vit', img_size=32, qkv_bias=False),
            'collab_test_resnet': make_model(4),
            'one': make_model(1, 'collab_test_vit', img_size=32),
        }
        self.images, self.labels = make_data(32)
        self.results: dict[str, Tensor] = {}
        self.plain: dict[str, Any] = {}

    def updater(self, accelerator: Accelerator, config: TrainConfig, network: str) -> Updater:
        """What learns, at the beginning of an epoch of three updates."""
        teacher = None
        if network == 'one':
            teacher = Teacher(self.networks['one'].prune().eval(), (0.5,), (0.5,), (0.5,), (0.5,), {})
        updater = Updater(config, copy.deepcopy(self.networks[network]), 3, accelerator, teacher)
        updater.begin_epoch(0)
        return updater

    def update(self, updater: Updater, step: int) -> Tensor:
        """Make an update from this process's images, and return its loss."""
        start = 16 * step + 8 * updater.accelerator.process_index
        images, labels = self.images[start:start + 8].clone(), self.labels[start:start + 8]
        return updater.update(images, labels, labels, 0, step)[0]

    def packed(self, updater: Updater) -> tuple[Any, dict[str, Tensor]]:
        """The state, as it is saved."""
        state = updater.state_dict(apart=True)
        rest, tensors = pack(state if updater.accelerator.is_main_process else {})
        return rest, copies(tensors)

    def run(self, name: str, network: str, stage: int, variables: Mapping[str, str], argv: list[str]) -> None:
        """One case."""
        os.environ.update({
            'ACCELERATE_DEEPSPEED_ZERO_STAGE': str(stage), 'ACCELERATE_DEEPSPEED_CONFIG_FILE': 'none',
            'ACCELERATE_MIXED_PRECISION': 'no', **variables})
        AcceleratorState._reset_state()
        config = parse_config(['--model.name=collab_test_vit', '--data.path=-', '--batch_size=16', *argv])
        accelerator = make_accelerator(config)
        updater = self.updater(accelerator, config, network)
        losses = [self.update(updater, 0), self.update(updater, 1)]
        if self.uses_zero:
            self.check_parts(name, updater)
        rest, middle = self.packed(updater)
        losses.append(self.update(updater, 2))
        end = self.packed(updater)[1]
        torch.distributed.broadcast_object_list(sent := [rest])
        updater.load_state_dict(unpack(sent[0], share_tensors(accelerator, copies(middle))))
        losses.append(self.update(updater, 2))
        assert losses[2] == losses[3], name
        again = self.packed(updater)[1]
        model = updater.release()
        if accelerator.is_main_process:
            assert end.keys() == again.keys()
            for key, tensor in end.items():
                assert torch.equal(tensor, again[key]), (name, key)
            for kind, tensors in (('middle', middle), ('end', end), ('released', model.state_dict())):
                self.results |= {f'{name}/{kind}/{key}': tensor.clone() for key, tensor in tensors.items()}
            self.results[f'{name}/losses'] = torch.stack(losses)
            self.plain[name] = rest
        if self.uses_zero and name == 'adamw':
            self.check_no_numbers(self.updater(accelerator, config, network))

    def check_parts(self, name: str, updater: Updater) -> None:
        """Each process holds half of the optimizer's state."""
        numel = sum(parameter.numel() for parameter in updater.model.parameters())
        parts = [value for values in updater.optimizer.optimizer.state.values() for value in values.values()
                 if isinstance(value, Tensor) and value.ndim]
        kinds = len(parts) // len(updater.optimizer.param_groups)
        assert 0 < sum(part.numel() for part in parts) <= 0.501 * kinds * numel, name
        assert updater.optimizer.zero.reduce_bucket_size == (1000 if name == 'own' else numel)

    def check_no_numbers(self, updater: Updater) -> None:
        """Gradients that are no numbers on one process end the run on both."""
        if not updater.accelerator.is_main_process:
            next(updater.model.parameters()).register_hook(lambda gradient: gradient * float('nan'))
        said = ''
        try:
            self.update(updater, 0)
            assert self.update(updater, 1).isnan()  # an older DeepSpeed has taken the step, as DDP would
        except ExplodedLossError as error:
            said = str(error)
        assert not said or 'gradients are no numbers at epoch 0, step 0' in said


if __name__ == '__main__':
    output, cases, *options = sys.argv[1:]
    if options:
        pretend()
    updates.fuse = lambda *args: None  # as it is on GPUs, and with DeepSpeed
    process = Process(bool(options))
    gc.freeze()  # Accelerate collects garbage after each case
    for name, case in json.loads(cases).items():
        process.run(name, *case)
    if process.plain:  # the main process
        save_file(process.results, f'{output}.safetensors')
        Path(f'{output}.json').write_text(json.dumps(process.plain))
