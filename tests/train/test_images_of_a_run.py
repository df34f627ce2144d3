"""What a run says, counts and lists about its images, and what it refuses to resume with."""
from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from timm_collab.train import TrainConfig
from timm_collab.train.errors import TrainError
from timm_collab.train.loop.meter import ExplodedLossError
from timm_collab.train.loop.step import TrainState
from timm_collab.train.record import report
from timm_collab.train.run import ModelRun, train

Recipe = Callable[..., TrainConfig]
NO_MEMORY = ('--data.cache_mb=0',)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Different images of two classes, 20 to train and 4 to test each."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 20), ('test', 4)):
        for name in ('cat', 'dog'):
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / 'data' / split / name / f'{number}.bmp')  # of one size
    return tmp_path / 'data'


def keys(folder: Path, *argv: str) -> list[str]:
    return [f'--data.path={folder}', '--data.in_chans=3', '--batch_size=8', '--data.max_train_samples=null', *argv]


def listed(run: Path) -> list[dict[str, str]]:
    with open(run / 'bad_images.csv', newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('argv', [(), NO_MEMORY, (*NO_MEMORY, '--data.workers=2')], ids=['memory', 'files', 'workers'])
def test_all_bad_images_are_listed(
        recipe: Recipe, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...],
) -> None:
    bad = ['train/cat/3.bmp', 'train/dog/0.bmp', 'train/dog/19.bmp', 'test/cat/2.bmp']
    for name in bad:
        (folder / name).write_bytes(b'no image')
    summary = train(recipe(*keys(folder, '--data.on_bad_image=skip', '--epochs=2', *argv)))
    assert summary.data.skipped + summary.data.replaced == 4
    rows = listed(tmp_path / 'run')
    assert sorted(row['file'] for row in rows) == sorted(str(folder / name) for name in bad)
    assert {row['split'] for row in rows} == {'train', 'test'}
    assert all("doesn't know its format" in row['reason'] for row in rows)
    if not argv:
        assert "left out as they can't be decoded: 4 images, for example '" in capsys.readouterr().out


@pytest.mark.parametrize('cache_mb', [0, 64])
def test_what_images_of_another_shape_lose_is_said(
        recipe: Recipe, folder: Path, capsys: pytest.CaptureFixture[str], cache_mb: int) -> None:
    for file in folder.rglob('*.bmp'):
        Image.new('RGB', (20, 8) if file.parts[-3] == 'test' else (16, 8)).save(file)
    argv = keys(folder, '--data.crop_pct=1', '--augment.no_aug=false', f'--data.cache_mb={cache_mb}', '--epochs=1')
    # The test split has 8 of 16 images to evaluate on: (0.5 + 0.6) / 2.
    train(recipe(*argv, '--data.val_fraction=0.2'))
    assert 'evaluation cuts off 55 % of ' in capsys.readouterr().out


@pytest.mark.parametrize(('argv', 'remedy'), [
    (['--data.pipeline=image'], 'raise data.workers, or try data.pipeline batch'),
    (NO_MEMORY, 'raise data.workers or data.cache_mb'),
])
def test_against_a_slow_loader_only_what_can_help_is_named(
        recipe: Recipe, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        argv: list[str], remedy: str,
) -> None:
    monkeypatch.setattr(report, 'WAITED', -1.0)
    train(recipe(*keys(folder, '--epochs=1', *argv)))
    assert f' % of the epoch: {remedy}\n' in capsys.readouterr().out


def test_bad_images_of_a_stream_are_listed(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    import datasets

    (folder / 'train' / 'cat' / '3.bmp').write_bytes(b'no image')
    for split in ('train', 'test'):
        files = sorted((folder / split).rglob('*.bmp'))
        cells = [{'bytes': file.read_bytes(), 'path': f'{file.parent.name}-{file.name}'} for file in files]
        table = {'image': cells, 'label': [int(file.parent.name == 'dog') for file in files]}
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['cat', 'dog']))
        (tmp_path / 'tables').mkdir(exist_ok=True)
        datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / 'tables' / f'{split}.parquet'))
    summary = train(recipe(*keys(tmp_path / 'tables', '--data.streaming=true', '--data.val_split=test',
                                 '--data.test_split=null', '--data.num_train_samples=40', '--data.workers=1',
                                 '--data.on_bad_image=skip')))
    assert summary.data.replaced == 1
    assert [(row['split'], row['file']) for row in listed(tmp_path / 'run')] == [('train', 'cat-3.bmp')]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('argv', [(), ('--augment.repeats=2', '--augment.no_aug=false')], ids=['once', 'repeats'])
def test_clean_label_of_a_replaced_image_is_its_own(
        recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int, argv: tuple[str, ...]) -> None:
    """With all labels of two classes flipped, the clean label is the other one, whichever image came."""
    for number in range(10):
        (folder / 'train' / 'cat' / f'{number}.bmp').write_bytes(b'no image')
    step, seen = TrainState.train_step, []

    def record(self: Any, images: Any, given: Any, clean: Any, *place: int) -> Any:
        seen.append(torch.stack([given.cpu(), clean.cpu()]))
        return step(self, images, given, clean, *place)

    monkeypatch.setattr(TrainState, 'train_step', record)
    summary = train(recipe(*keys(folder, '--data.on_bad_image=skip', '--noise.kind=pair', '--noise.rate=1', *NO_MEMORY,
                                 f'--data.workers={workers}', '--epochs=2', *argv)))
    assert summary.data.replaced > 2
    assert all(torch.equal(given, 1 - clean) for given, clean in seen)
    assert {int(label) for batch in seen for label in batch[0]} == {0, 1}


def kill_after_first_checkpoint(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]) -> None:
    save = ModelRun._save

    def save_and_die(self: ModelRun, state: dict[str, Any], *place: Any) -> None:
        change(self.origin)
        save(self, state, *place)
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelRun, '_save', save_and_die)


def exchange(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / 'aside')
    (folder / other).rename(folder / one)
    (folder / 'aside').rename(folder / other)


@pytest.mark.parametrize('argv', [(), NO_MEMORY], ids=['memory', 'files'])
@pytest.mark.parametrize('pair', [
    ('train/cat/1.bmp', 'train/dog/2.bmp'), ('train/cat/1.bmp', 'train/cat/2.bmp'),
])
def test_exchanged_images_are_not_gone_on_with(
        recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], pair: tuple[str, str],
) -> None:
    config = recipe(*keys(folder, '--epochs=3', *argv))
    with monkeypatch.context() as patch:
        kill_after_first_checkpoint(patch, lambda origin: None)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    exchange(folder, *pair)
    with pytest.raises(TrainError, match=r"the (train|val) images of '.*run' have changed since: .* differ, restore"):
        train(config)
    exchange(folder, *pair)
    assert train(config).epochs == 3


def test_copied_files_and_older_checkpoints_resume(
        recipe: Recipe, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
) -> None:
    for name, change in (('new', lambda origin: None), ('old', lambda origin: origin.pop('images'))):
        config = recipe(*keys(folder, '--epochs=3', *NO_MEMORY, f'--output={tmp_path / name}'))
        with monkeypatch.context() as patch:
            kill_after_first_checkpoint(patch, change)
            with pytest.raises(KeyboardInterrupt):
                train(config)
        shutil.copytree(folder, tmp_path / 'copy', copy_function=shutil.copyfile)
        shutil.rmtree(folder)
        (tmp_path / 'copy').rename(folder)
        capsys.readouterr()
        assert train(config).epochs == 3
        warned = 'warning: the modification times of all train images have changed' in capsys.readouterr().err
        assert warned == (name == 'new')


def test_turned_deep_and_animated_images_are_counted(
        recipe: Recipe, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    with Image.open(folder / 'train' / 'cat' / '0.bmp') as image:
        for name in ('train/cat/20.png', 'test/dog/4.png'):
            image = image.transpose(Image.Transpose.ROTATE_90)
            image.save(folder / name, exif=exif)
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(folder / 'train' / 'cat' / '21.png')
    frames = [Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue')]
    frames[0].save(folder / 'train' / 'dog' / '20.gif', save_all=True, append_images=frames[1:])
    summary = train(recipe(*keys(folder, '--data.val_fraction=0.2')))
    assert (summary.data.turned, summary.data.sixteen_bit) == (2, 1)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith('turned by their EXIF orientation: 2 of 52 images; ') for line in lines)
    assert any(line.startswith('with 16 bits per value, scaled by value >> 8: 1 of 52 images; ') for line in lines)
    assert 'with further frames or pages, of which the first is used: 1 of 52 images' in lines
    assert not any('byte for byte' in line for line in lines)


def test_duplicates_are_told(recipe: Recipe, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / 'train' / 'cat' / '0.bmp', folder / 'test' / 'cat' / '0.bmp')
    shutil.copy(folder / 'train' / 'dog' / '1.bmp', folder / 'train' / 'cat' / '20.bmp')
    train(recipe(*keys(folder)))
    lines = capsys.readouterr().out.splitlines()
    across = next(line for line in lines if 'byte for byte' in line)
    assert 'test/cat/0.bmp' in across or 'train/cat/20.bmp' in across  # held out, or not
    capsys.readouterr()
    train(recipe(*keys(folder, '--data.val_split=test', '--data.test_split=null', f'--output={folder.parent / "2"}')))
    lines = capsys.readouterr().out.splitlines()
    assert ('warning: images to evaluate on that are byte for byte in another split, too: 1, such as'
            f" '{folder}/test/cat/0.bmp' and '{folder}/train/cat/0.bmp'; scores on them are too good") in lines
    contradicting = next(line for line in lines if 'another label' in line)
    assert contradicting.startswith('warning: images that have a copy with another label: 2, such as')


def test_twelve_bits_in_sixteen_are_refused_until_the_recipe_says_so(
        recipe: Recipe, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(folder.rglob('*.bmp')):
        Image.fromarray(rng.integers(0, 4096, (8, 8)).astype(np.uint16)).save(path.with_suffix('.png'))
        path.unlink()
    for argv in ((), NO_MEMORY):
        with pytest.raises(TrainError, match=r"of split 'train' .* largest value is 40\d\d.* --data.bit_depth 12$"):
            train(recipe(*keys(folder, *argv)))
    assert train(recipe(*keys(folder, '--data.bit_depth=12'))).data.sixteen_bit == 48
    assert 'with 16 bits per value, scaled by value >> 4: 48 of 48 images; ' in capsys.readouterr().out
    with pytest.raises(TrainError, match=r'png. in row \d+ of split .* has a value of \d+, more than data.bit_dep'):
        train(recipe(*keys(
            folder, '--data.bit_depth=11', '--data.on_bad_image=skip', f'--output={folder.parent / "2"}')))


def test_the_batch_of_an_exploded_loss_names_its_files(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExplodedLossError):
        train(recipe(*keys(folder, '--max_loss=1e-6')))
    batch = json.loads((tmp_path / 'run' / 'exploded_batch.json').read_text())
    assert len(batch['files']) == len(batch['rows']) == 8
    assert all(Path(file).is_relative_to(folder / 'train') for file in batch['files'])
