"""Streaming: the content of an epoch, its distribution over processes, and data that can't be streamed."""
from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from timm_collab.train import TrainError
from timm_collab.train.config import AugmentConfig, DataConfig
from timm_collab.train.data.augment.preprocess import make_preprocessing
from timm_collab.train.data.loading.images import _loader
from timm_collab.train.data.loading.streaming import StreamedImages, StreamSampler, StreamSplit
from timm_collab.train.data.sources import Source, load_source, load_split

PER_FILE = 12
FEATURES = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['dark', 'bright']))


def png(number: int) -> bytes:
    """An image that tells its number by its colour."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, 'png')
    return buffer.getvalue()


def write_parquet(
        folder: Path, split: str, numbers: list[list[int]], broken: int = -1, content: bytes | None = b'broken',
) -> None:
    folder.mkdir(exist_ok=True)
    for index, of_file in enumerate(numbers):
        images = [{'bytes': png(number), 'path': None} for number in of_file]
        if broken in of_file:
            images[of_file.index(broken)] = content and {'bytes': content, 'path': None}
        rows = datasets.Dataset.from_dict(
            {'image': images, 'label': [number % 2 for number in of_file]}, features=FEATURES)
        rows.to_parquet(str(folder / f'{split}-{index:05d}-of-{len(numbers):05d}.parquet'))


@pytest.fixture
def shards(tmp_path) -> Path:
    """48 training images in 4 files of 12, and 6 to validate."""
    folder = tmp_path / 'shards'
    write_parquet(folder, 'train', np.arange(4 * PER_FILE).reshape(4, -1).tolist())
    write_parquet(folder, 'validation', [list(range(100, 106))])
    return folder


def source(path: Path | str, **keys) -> Source:
    return load_source(DataConfig(path=str(path), streaming=True, **{'num_train_samples': 48, **keys}))


def stream(path: Path | str, **keys) -> StreamSplit:
    train = source(path, **keys).train
    assert isinstance(train, StreamSplit)
    return train


def numbers(examples, split: StreamSplit) -> list[int]:
    """The numbers that images tell."""
    found = []
    for example in examples:
        assert example is not None
        image = datasets.Image().decode_example(example.encoded)
        found.append(int(np.asarray(image)[0, 0, 0]))
        assert example.label == found[-1] % 2
    return found


def epoch(sampler: StreamSampler, number: int = 0, skip: int = 0) -> list[int]:
    sampler.epoch, sampler.skip = number, skip
    return numbers(sampler, sampler.split)


@pytest.mark.parametrize('lanes', [1, 2, 4])
def test_epoch_has_every_example_once_in_its_own_order(shards, lanes):
    sampler = StreamSampler(stream(shards), 8, seed=3, lanes=lanes, buffer=24)
    first, second = epoch(sampler), epoch(sampler, 1)
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second
    assert epoch(sampler) == first
    assert epoch(StreamSampler(stream(shards), 8, seed=4, lanes=lanes, buffer=24)) != first
    assert len(sampler) == 48
    assert sampler.indices() == list(range(48))


def test_without_a_buffer_files_are_shuffled_but_read_in_order(shards):
    sampler = StreamSampler(stream(shards), 12, seed=0, lanes=1)
    orders = {tuple(number // PER_FILE for number in epoch(sampler, each)[::PER_FILE]) for each in range(5)}
    assert len(orders) > 1
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    first = epoch(sampler)[:PER_FILE]
    assert first == sorted(first)


def test_buffer_shuffles(shards):
    split = stream(shards)
    for size in (2, 12, 48, 1000):
        for number in range(3):
            found = epoch(StreamSampler(split, 12, seed=0, lanes=1, buffer=size), number)
            assert sorted(found) == list(range(48))
    late = [epoch(StreamSampler(split, 12, seed, lanes=1, buffer=48)).index(0) for seed in range(40)]
    assert 15 < np.mean(late) < 32  # of places 0 to 47


def test_batches_take_equally_from_all_lanes(shards):
    sampler = StreamSampler(stream(shards), 8, seed=0, lanes=4, buffer=24)
    for start in range(0, 48, 8):
        files = [number // PER_FILE for number in epoch(sampler)[start:start + 8]]
        assert sorted(files) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_skipped_examples_are_left_out(shards):
    sampler = StreamSampler(stream(shards), 8, seed=0, buffer=24)
    assert epoch(sampler, 2, skip=16) == epoch(sampler, 2)[16:]
    assert [example.key for example in sampler] == [(2, place) for place in range(48)]


@pytest.mark.parametrize('lanes', [1, 3, 4])
@pytest.mark.parametrize('count', [2, 3, 4])
def test_processes_read_only_their_part(shards, lanes, count, monkeypatch):
    split = stream(shards)
    whole = epoch(StreamSampler(split, 12, seed=1, lanes=lanes, buffer=24))
    opened = []
    read = StreamSplit.read
    monkeypatch.setattr(StreamSplit, 'read', lambda self, lane, *args: opened.append(lane) or read(self, lane, *args))
    for process in range(count):
        opened.clear()
        sampler = StreamSampler(split, 12, seed=1, lanes=lanes, buffer=24, process=(process, count))
        examples = list(sampler)
        assert len(examples) == 48
        part = 12 // count
        for start in range(0, 48, 12):
            own = range(start + process * part, start + (process + 1) * part)
            assert numbers([examples[place] for place in own], split) == [whole[place] for place in own]
            assert all(examples[place] is None for place in range(start, start + 12) if place not in own)
        if lanes == count == 4:
            assert opened == [process]
        assert len(opened) == len(set(opened)) <= -(-lanes // count) + 1


def test_files_of_different_lengths_start_over(tmp_path):
    folder = tmp_path / 'uneven'
    write_parquet(folder, 'train', [list(range(4)), list(range(10, 30))])
    write_parquet(folder, 'validation', [[0, 1]])
    sampler = StreamSampler(stream(folder, num_train_samples=24), 8, seed=0, lanes=2, buffer=8)
    found = epoch(sampler)
    assert sorted(number for number in found if number < 10) == sorted([*range(4)] * 3)
    assert len({number for number in found if number >= 10}) == 12


def test_repeats_are_in_a_row_with_their_own_draws(shards):
    split = stream(shards)
    sampler = StreamSampler(split, 8, seed=0, lanes=1, buffer=24, repeats=2)
    examples = list(sampler)
    found = numbers(examples, split)
    assert found[::2] == found[1::2]
    assert len(set(found)) == 24
    assert len({example.key for example in examples}) == 48


def test_number_of_lanes(shards):
    split = stream(shards)
    assert split.num_lanes(64, None) == 4
    assert split.num_lanes(3, None) == 2
    assert split.num_lanes(64, 3) == 3
    assert split.num_lanes(64, 9) == 4


def batches(path: Path, workers: int = 0, skip: bool = False, seed: int = 0) -> tuple[list, int]:
    split = stream(path)
    config = DataConfig(path='-', img_size=8)
    preprocessing = make_preprocessing(torch.nn.Linear(1, 1), config, AugmentConfig(re_prob=0.5))
    dataset = StreamedImages(split, preprocessing.training, seed, skip, workers)
    sampler = StreamSampler(split, 8, seed, buffer=24)
    loader = _loader(dataset, 8, workers, sampler=sampler, drop_last=True)
    return [*loader], dataset.num_replaced


def test_result_does_not_depend_on_workers(shards):
    one, two = (batches(shards, workers)[0] for workers in (0, 2))
    assert len(one) == len(two) == 6
    for (images, target), (other_images, other_target) in zip(one, two, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(target, other_target)


@pytest.mark.parametrize('content', [b'broken', None])
def test_image_that_cannot_be_decoded(shards, content):
    write_parquet(shards, 'train', np.arange(4 * PER_FILE).reshape(4, -1).tolist(), broken=30, content=content)
    with pytest.raises(TrainError, match=r"image \d+ of epoch 0, both from 0, of split 'train' can't be decoded"):
        batches(shards)
    (alone, count), (shared, shared_count) = (batches(shards, workers, skip=True) for workers in (0, 2))
    assert count == shared_count == 1
    for (images, target), (other_images, other_target) in zip(alone, shared, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(target, other_target)


def test_error_if_no_image_of_a_batch_can_be_decoded(shards):
    shutil.rmtree(shards)
    features = [{'bytes': b'broken', 'path': None}] * 48
    shards.mkdir()
    for split in ('train', 'validation'):
        rows = datasets.Dataset.from_dict({'image': features, 'label': [0, 1] * 24}, features=FEATURES)
        rows.to_parquet(str(shards / f'{split}.parquet'))
    with pytest.raises(TrainError, match="can't be decoded"):
        batches(shards, skip=True)


def test_webdataset_shards(tmp_path):
    for split, files in (('train', 4), ('validation', 1)):
        for index in range(files):
            with tarfile.open(tmp_path / f'{split}-{index:04d}.tar', 'w') as tar:
                for number in range(index * PER_FILE, (index + 1) * PER_FILE):
                    for suffix, data in (('png', png(number)), ('cls', str(number % 2).encode())):
                        member = tarfile.TarInfo(f'{number:06d}.{suffix}')
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    found = source(tmp_path, image_column='png', label_column='cls')
    assert isinstance(found.train, StreamSplit)
    assert found.label_names is None
    assert sorted(epoch(StreamSampler(found.train, 8, seed=0, buffer=24))) == list(range(48))
    assert found.val is not None
    assert found.val.labels.tolist() == [0, 1] * 6


def test_folder_of_images_is_refused(image_folder):
    with pytest.raises(TrainError, match=r'is a folder of images.* leave out data\.streaming'):
        source(image_folder(train=24, validation=2))


def test_only_the_training_split_is_streamed(shards, monkeypatch):
    plain = load_source(DataConfig(path=str(shards)))
    monkeypatch.setattr(datasets, 'load_dataset', None)  # it would copy all
    found = source(shards)
    assert found.label_names == plain.label_names == ['dark', 'bright']
    assert found.val is not None
    assert plain.val is not None
    assert found.val.labels.tolist() == plain.val.labels.tolist()
    assert all(
        np.array_equal(np.asarray(found.val.image(index)), np.asarray(plain.val.image(index)))
        for index in range(len(plain.val))
    )


def test_cached_split_follows_changes_of_the_files(shards):
    assert len(source(shards).val) == 6
    digest = stream(shards).digest
    assert stream(shards).digest == digest
    write_parquet(shards, 'validation', [list(range(100, 109))])
    assert len(source(shards).val) == 9
    assert stream(shards).digest != digest


def test_single_split(shards):
    config = DataConfig(path=str(shards), streaming=True)
    split, names = load_split(config, 'train')
    assert len(split) == 48
    assert names == ['dark', 'bright']
    assert np.asarray(split.image(7))[0, 0, 0] == 7
    with pytest.raises(TrainError, match=r"split: .* has no split 'trian', it has 'train', 'validation'"):
        load_split(config, 'trian')


@pytest.mark.parametrize(('keys', 'message'), [
    (dict(train_split='trian'), "has no split 'trian', it has 'train', 'validation'"),
    (dict(val_split='test'), "has no split 'test'"),
    (dict(image_column='img'), "there is no column 'img'"),
    (dict(label_column='lable'), "there is no column 'lable'"),
    (dict(label_column='image'), 'needs class indices'),
    (dict(path='/nowhere/at/all'), 'does not exist'),
])
def test_invalid_sources_are_refused(shards, keys, message):
    with pytest.raises(TrainError, match=message):
        source(**{'path': shards, **keys})


def test_validation_split_is_required(shards):
    (shards / 'validation-00000-of-00001.parquet').rename(shards / 'test-00000-of-00001.parquet')
    with pytest.raises(TrainError, match=r"can't be held out of a stream.* --data\.val_split with one of train, test"):
        source(shards)
    assert source(shards, val_split='test', test_split=None).val is not None


def test_folder_of_save_to_disk_is_refused(shards, tmp_path):
    datasets.load_dataset(str(shards)).save_to_disk(str(tmp_path / 'saved'))
    with pytest.raises(TrainError, match=r'is never copied: leave out data\.streaming'):
        source(tmp_path / 'saved')


@pytest.mark.parametrize(('keys', 'message'), [
    (dict(multi_label=True), r'data\.multi_label'),
    (dict(max_train_samples=5), r'write data\.num_train_samples'),
    (dict(val_split=None), r'data\.val_split'),
    (dict(pipeline='batch'), r'data\.pipeline batch'),
    (dict(path='timm:x'), r"timm's readers"),
    (dict(num_train_samples=0), 'must be at least 1, got 0'),
    (dict(shuffle_buffer=0), 'must be at least 1, got 0'),
    (dict(lanes=-1), 'must be at least 1, got -1'),
    (dict(streaming=False, lanes=2), r'data\.lanes is for streamed data'),
])
def test_contradicting_keys_are_refused(keys, message):
    with pytest.raises(TrainError, match=message):
        DataConfig(**{'path': 'x', 'streaming': True, **keys})


def test_label_outside_the_classes(shards):
    split = stream(shards)
    limited = type(split)(**{**vars(split), 'num_classes': 1})
    with pytest.raises(TrainError, match=r"label 1 of an image of split 'train' is outside \[0, 1\)"):
        epoch(StreamSampler(limited, 8, seed=0))


def test_truncated_file(shards):
    split = stream(shards)
    damaged = shards / 'train-00003-of-00004.parquet'
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with pytest.raises(TrainError, match=r"split 'train' can't be read on .*the same command resumes"):
        epoch(StreamSampler(split, 8, seed=0))
