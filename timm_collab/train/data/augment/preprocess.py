"""From images to tensors: timm's transforms for training and evaluation, from one data config."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import timm.data
import torch.nn as nn
from PIL import Image
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms

from ...config import AugmentConfig, DataConfig
from ...errors import TrainError

SMALL_SIDE = 96
"""Up to this side of the input, in pixels, images are likely stored at about that size, and a crop costs detail."""
MUCH = 0.35
"""From this fraction of the pixels on, what images lose by their shape is worth a note."""
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How images become the input of a model.

    Args:
        data_config: Result of `timm.data.resolve_data_config`. It is saved with the model, so that `evaluation` can be
            rebuilt from it.
        training: Transform of training images.
        evaluation: Transform of validation and test images.
    """

    data_config: dict[str, Any]
    training: Transform
    evaluation: Transform

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the evaluation: that it cuts pixels away from small images."""
        size, resized, crop_pct = self._size, self._resized, self.data_config['crop_pct']
        if min(size) > SMALL_SIDE or resized == size:
            return ()
        before, after = ('x'.join(map(str, sides)) for sides in (resized, size))
        how = {'squash': f'images to {before}', 'border': f'images to fit into {before}'}.get(
            self.data_config['crop_mode'],
            f'the shorter side of images to {resized[0]}' if resized[0] == resized[1] else f'images to cover {before}')
        which = " of the input's shape" if self._keeps_shape else ''
        return (f'evaluation resizes {how} pixels and cuts out the centre, {after} (data.crop_pct {crop_pct:g}):'
                f' write --data.crop_pct 1 to show the network whole images{which}',)

    def shape_notes(self, sizes: Mapping[tuple[int, int], int]) -> tuple[str, ...]:
        """What the user should know about images of another shape than the input: that they lose their ends.

        Args:
            sizes: Number of images to evaluate on by width and height.
        """
        if not sizes or not self._keeps_shape:
            return ()
        (input_height, input_width), (resized_height, resized_width) = self._size, self._resized
        # The shorter side, compared with the input's, decides by how much an image is resized.
        ratios = {size: size[0] * resized_height / (size[1] * resized_width) for size in sizes}
        kept = sum(count * min(ratios[size], 1 / ratios[size]) for size, count in sizes.items()) / sum(sizes.values())
        if kept >= 1 - MUCH:
            return ()
        seen = kept * input_height * input_width / (resized_height * resized_width)
        return (f"evaluation cuts off {100 * (1 - seen):.0f} % of the images' pixels, as their shape differs from the"
                f" input's, {input_height}x{input_width}: give data.img_size their shape, [height, width], or write"
                ' --augment.crop pad and no data.crop_pct, which squashes whole images',)

    @property
    def _size(self) -> tuple[int, int]:
        height, width = self.data_config['input_size'][-2:]
        return height, width

    @property
    def _resized(self) -> tuple[int, int]:
        """Height and width that timm resizes to, before it cuts out the input."""
        height, width = (math.floor(side / self.data_config['crop_pct']) for side in self._size)
        return height, width

    @property
    def _keeps_shape(self) -> bool:
        """Whether images are neither squashed nor padded to the shape of the input."""
        return self.data_config['crop_mode'] not in ('squash', 'border')


def make_preprocessing(model: nn.Module, data: DataConfig, augment: AugmentConfig) -> Preprocessing:
    """Resolve size, mean, std, interpolation and crop from the recipe, or else from the model's `pretrained_cfg`.

    Raises:
        TrainError: timm refuses a setting.
    """
    data_config = resolve(data, getattr(model, 'pretrained_cfg', {}))
    if shows_whole_images(data, augment):
        data_config.update(crop_pct=1.0, crop_mode='squash')
    try:
        return Preprocessing(
            data_config=data_config,
            training=_training_transform(data_config, augment),
            evaluation=timm.data.create_transform(**data_config, is_training=False),
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise TrainError(f'timm.data.create_transform refuses the settings of augment or data: {error}') from error


def resolve(data: DataConfig, pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """timm's data config: what a recipe names, and else what a `pretrained_cfg` has."""
    asked = {
        'in_chans': data.in_chans,
        'input_size': None if data.sides is None else (data.in_chans, *data.sides),
        'mean': data.mean,
        'std': data.std,
        'interpolation': data.interpolation,
        'crop_pct': data.crop_pct,
    }
    data_config = timm.data.resolve_data_config(asked, pretrained_cfg=pretrained_cfg)
    data_config['input_size'] = (data.in_chans, *data_config['input_size'][-2:])
    for name in ('mean', 'std'):
        values = tuple(data_config[name])
        if len(values) != data.in_chans:
            values = (sum(values) / len(values),) * data.in_chans
        data_config[name] = values
    return data_config


def shows_whole_images(data: DataConfig, augment: AugmentConfig) -> bool:
    """Whether evaluation shows whole images, squashed to the size of the input, because training does."""
    return data.crop_pct is None and (augment.no_aug or augment.crop == 'pad')


def _training_transform(data_config: dict[str, Any], augment: AugmentConfig) -> Transform:
    crop = augment.crop
    pipeline = timm.data.create_transform(
        **data_config,
        is_training=True,
        no_aug=augment.no_aug,
        train_crop_mode=None if crop == 'pad' else crop,
        scale=None if augment.scale is None else tuple(augment.scale),
        ratio=None if augment.ratio is None else tuple(augment.ratio),
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter or None,
        auto_augment=augment.auto_augment,
        re_prob=augment.re_prob,
    )
    for step in pipeline.transforms:
        for op in (*getattr(step, 'ops', ()), *chain.from_iterable(getattr(step, 'policy', ()))):  # of timm's policies
            if op.aug_fn is timm_posterize:
                op.aug_fn = posterize
    if crop == 'pad' and not augment.no_aug:
        # timm has no such crop: it replaces the random resized crop at the start of the pipeline.
        size = data_config['input_size'][-2:]
        pipeline.transforms[0] = transforms.Compose([
            transforms.Resize(size, interpolation=str_to_interp_mode(data_config['interpolation'])),
            transforms.RandomCrop(size, padding=augment.crop_padding),
        ])
    return pipeline


def posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's `posterize`, with black images for 0 bits as of Pillow before version 12; newer ones refuse that.

    timm's increasing policies, such as `rand-m9-mstd0.5-inc1`, draw 0 bits now and then.
    """
    return timm_posterize(image, bits_to_keep) if bits_to_keep > 0 else Image.new(image.mode, image.size)
