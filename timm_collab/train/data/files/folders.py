"""Folders of images: which of them are splits, which are classes, and which files are no images.

A split is a folder directly under the root whose whole name says so, in any case (`SPLITS`), and that holds class
folders, where a training split is among them. Without one, the folders under the root are the classes, whatever they
are called. All images below a class folder belong to its class. Links are followed.
"""
from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import datasets
from PIL import Image, ImageFile, UnidentifiedImageError

from ...errors import TrainError, one_line, require
from ..labels.class_names import natural_order

SPLITS = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'dev'),
    'test': ('test', 'testing', 'eval'),
}
"""The splits and the words that name them."""

_WORDS = {word: split for split, words in SPLITS.items() for word in words}
_OUTSIDE = 'an image outside the class folders'
_SNIFFED = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'JPEG2000', 'AVIF')
_NEEDS_PLUGIN = {'.heic', '.heif', '.avif', '.jxl', '.svg', '.dng', '.cr2', '.cr3', '.nef', '.arw'}


@dataclass(frozen=True)
class Opened:
    """A dataset as it was opened.

    Args:
        splits: The splits by name; with timm's readers, only those that the recipe names.
        left_out: Number of files that are in no split, by reason.
        notes: What the user should know about how the data was read, a sentence each.
    """

    splits: dict[str, datasets.Dataset]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def canonical_split(name: str) -> str | None:
    """The split that a whole name stands for, 'train', 'validation' or 'test'; None if it is no name of a split."""
    return _WORDS.get(name.lower())


@dataclass(frozen=True, eq=False)
class Folder:
    """What is in a folder.

    Args:
        path: Its path.
        images: Paths of the images directly in it, sorted.
        others: Paths of other visible files directly in it, sorted.
        folders: The folders directly in it by name, sorted.
        left_out: Number of files directly in it that are no images, by reason; hidden folders count with all they hold.
    """

    path: str
    images: list[str]
    others: list[str]
    folders: dict[str, Folder]
    left_out: Counter[str]

    def walk(self) -> Iterator[Folder]:
        """This folder and all below it."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()

    @cached_property
    def all_images(self) -> list[str]:
        """Paths of the images in it and below."""
        return [image for folder in self.walk() for image in folder.images]

    @cached_property
    def all_left_out(self) -> Counter[str]:
        """Number of files in it and below that are no images, by reason."""
        return sum((folder.left_out for folder in self.walk()), Counter())

    @cached_property
    def classes(self) -> dict[str, list[str]]:
        """Paths of the images of each class: of a folder directly in it and of all below that."""
        classes: defaultdict[str, list[str]] = defaultdict(list)
        for name, folder in self.folders.items():
            if folder.all_images:
                classes[unicodedata.normalize('NFC', name)] += folder.all_images
        return dict(classes)


def scan(path: str, above: tuple[tuple[int, int], ...] = (), link: str | None = None) -> Folder:
    """Read a folder and all below it.

    Args:
        path: The folder.
        above: Device and inode of each folder above it.
        link: The last link on the way to it.

    Raises:
        TrainError: A folder can't be read, a link leads back to a folder above it, or a name isn't a line
            of UTF-8.
    """
    images, others, folders, left_out = [], [], {}, Counter[str]()
    try:
        status = os.stat(path)
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise TrainError(f"folder '{path}' can't be read ({one_line(error.strerror)})") from None
    here = status.st_dev, status.st_ino
    require(here not in above, f"link '{link or path}' leads back to a folder that contains it: remove the link")
    for entry in entries:
        if entry.name.startswith('.') or entry.name == '__MACOSX':
            is_folder = entry.is_dir(follow_symlinks=False)
            left_out[f'hidden ({entry.name}/)' if is_folder else 'hidden'] += _count(entry.path) if is_folder else 1
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()  # a system call for links alone
        except OSError as error:
            raise TrainError(f"link '{entry.path}' can't be followed ({one_line(error.strerror)}): remove it") from None
        require(_is_utf8(entry.name), f"the name '{_readable(entry.path)}' is not UTF-8: rename it, or all in its"
                                      ' folder with convmv -f latin1 -t utf8')
        require(entry.name.splitlines() == [entry.name],
                f'the name {entry.name!r} in folder {path!r} has a line break: rename it')
        if is_folder:
            folders[entry.name] = scan(entry.path, (*above, here), entry.path if entry.is_symlink() else link)
        elif not is_file:
            left_out['broken link' if entry.is_symlink() else 'not a regular file'] += 1
        elif reason := _no_image(entry.path):
            left_out[reason] += 1
            others.append(entry.path)
        else:
            images.append(entry.path)
    return Folder(path, images, others, folders, +left_out)


def _is_utf8(name: str) -> bool:
    """Whether a name of a file is text that can be stored."""
    return name.isascii() or os.fsencode(name) == name.encode('utf-8', 'replace')


def _readable(path: str) -> str:
    return os.fsencode(path).decode('latin-1')


def _count(path: str) -> int:
    return sum(len(files) for _, _, files in os.walk(path))


def _no_image(path: str) -> str | None:
    """Why a file is no image that can be read; None if it is one, by its extension or by its content."""
    extension = os.path.splitext(path)[1].lower()
    if extension in _extensions():
        return None
    try:
        # Camera formats look like TIFF and hold a thumbnail.
        Image.open(path, formats=_SNIFFED if extension else (*_SNIFFED, 'TIFF')).close()
        return None
    except (UnidentifiedImageError, OSError, SyntaxError):
        pass
    except Exception:  # found to be an image, with a fault that is reported when it is decoded
        return None
    if extension in _NEEDS_PLUGIN:
        return f'Pillow cannot read {extension}: convert it to JPEG or PNG'
    return f'not an image ({extension or "no extension"})'


@cache
def _extensions() -> frozenset[str]:
    """Extensions of the images that the installed Pillow reads."""
    known = Image.registered_extensions()  # imports all plugins
    identified_only = {name for name, (opener, _) in Image.OPEN.items()
                       if isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)}
    readable = Image.OPEN.keys() - identified_only - {'MPEG'}
    return frozenset(extension for extension, name in known.items() if name in readable)


def split_folders(root: Folder) -> dict[str, Folder]:
    """The folders under the root that are splits, by the name of the split; none if no training split is among them.

    Raises:
        TrainError: Two folders are the same split.
    """
    found: dict[str, Folder] = {}
    named = {name: folder for name, folder in root.folders.items() if canonical_split(name) and folder.classes}
    if 'train' not in map(canonical_split, named):
        return {}
    for name, folder in named.items():
        split = str(canonical_split(name))
        other = found.setdefault(split, folder)
        require(other is folder, f"data.path '{root.path}': folders '{Path(other.path).name}' and '{name}' are both the"
                                 f" split '{split}': rename one of them, or merge them")
    return {split: found[split] for split in SPLITS if split in found}


def open_images(root: Folder) -> Opened:
    """Make a split of each folder of class folders, or one of the root.

    Raises:
        TrainError: There is only one class, or none; a class folder has no image; two folders are the same split.
    """
    splits = split_folders(root)
    left_out, notes = Counter(root.all_left_out), list[str]()
    left_out[_OUTSIDE] += sum(len(folder.images) for folder in (root, *splits.values()))
    for name, folder in root.folders.items() if splits else ():
        if folder not in splits.values() and folder.all_images:
            left_out['an image in a folder beside train/ that is no split'] += len(folder.all_images)
            why = 'has no class folders' if canonical_split(name) else 'is no split'
            notes.append(f"folder '{name}' beside train/ {why}: its {len(folder.all_images)} images are left out")
    if not splits:
        require(len(root.classes) > 1, f"data.path '{root.path}' {_without_classes(root)}")
        if words := [name for name in root.classes if canonical_split(name)]:
            notes.append(f'folders {", ".join(map(repr, words))} are read as classes and not as splits, because there'
                         ' is no folder train/ with class folders')
        splits = {'train': root}
    for folder in splits.values():
        _check_classes(folder, notes)
    return Opened({split: _table(folder.classes) for split, folder in splits.items()}, dict(+left_out),
                  tuple(dict.fromkeys(notes)))


def open_files(files_by_split: Mapping[str, Sequence[str]], path: str) -> Opened:
    """Make a split of each group of files, as a card names them. The folder that holds an image is its class.

    Args:
        files_by_split: The files.
        path: `data.path`, for messages.

    Raises:
        TrainError: A split has no image, or all are of one class.
    """
    left_out, notes, classes_by_split = Counter[str](), list[str](), {}
    for split, files in files_by_split.items():
        classes: defaultdict[str, list[str]] = defaultdict(list)
        for file in files:
            if reason := _no_image(file):
                left_out[reason] += 1
            else:
                classes[unicodedata.normalize('NFC', os.path.basename(os.path.dirname(file)))].append(file)
        require(classes, f"split '{split}' of data.path '{path}' has no images: correct its files in README.md")
        images = sorted((image for of_class in classes.values() for image in of_class), key=_depth)
        if _depth(images[0]) != _depth(images[-1]):
            notes.append(f"images of split '{split}' are in folders of different depth, and the folder that holds an"
                         f" image is its class, as README.md names its file: that of '{images[-1]}' is"
                         f" '{os.path.basename(os.path.dirname(images[-1]))}'")
        classes_by_split[split] = dict(classes)
    names = {name for classes in classes_by_split.values() for name in classes}
    require(len(names) > 1, f"data.path '{path}': README.md names images in one folder, '{next(iter(names))}', and"
                            ' classification needs a folder for each of at least 2 classes')
    return Opened({split: _table(classes) for split, classes in classes_by_split.items()}, dict(left_out),
                  tuple(notes))


def _depth(path: str) -> int:
    return path.count(os.sep)


def _without_classes(root: Folder) -> str:
    """What is wrong with a folder that has fewer than two classes."""
    for name, folder in root.folders.items():
        if split_folders(folder) or len(folder.classes) > 1:
            return f"has the data in its folder '{name}': write --data.path {folder.path}"
    if any(reason.endswith('(.zip)') for reason in root.all_left_out):
        return 'holds zip files: unzip them first'
    if root.classes:
        _check_classes(root, [])
        return f"has one class folder, '{next(iter(root.classes))}', and classification needs at least 2"
    if root.images:
        return (f'has {len(root.images)} images and no class folders: make a folder for each class, or name a CSV file'
                ' with the columns file_name and label as data.path')
    found = ', '.join(f'{count} {reason}' for reason, count in root.all_left_out.items())
    return f'contains no data ({found})' if found else 'contains no data, it is an empty folder'


def _check_classes(split: Folder, notes: list[str]) -> None:
    """Raise an error if all files of a class folder are left out, and note what else is unusual about the classes."""
    for folder in split.folders.values():
        if folder.all_images:
            continue
        reasons = {reason: count for reason, count in folder.all_left_out.items() if not reason.startswith('hidden')}
        require(not reasons, f"class folder '{folder.path}' has no image that can be read"
                             f' ({", ".join(f"{count} {reason}" for reason, count in reasons.items())}): repair it,'
                             ' or move it out of the data')
        notes.append(f"class folder '{folder.path}' is empty and no class")
    deeper = [image for folder in split.folders.values() for below in folder.folders.values()
              for image in below.all_images]
    if deeper:
        notes.append(f"{len(deeper)} images are in folders below a class folder and belong to its class, such as"
                     f" '{os.path.relpath(deeper[0], split.path)}'")
    if natural_order(split.classes) != sorted(split.classes):
        notes.append('classes are in natural order (2 before 10), as in timm; torchvision, datasets and earlier'
                     ' versions of timm-collab sort them as text')


def _table(classes: Mapping[str, Sequence[str]]) -> datasets.Dataset:
    """The images of a split, sorted by path, and their classes in natural order."""
    names = natural_order(classes)
    labelled = sorted((image, label) for label, name in enumerate(names) for image in classes[name])
    images, labels = zip(*labelled, strict=True)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict({'image': images, 'label': labels}, features=features)
