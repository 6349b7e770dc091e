"""Images of digits to learn from: scikit-learn's, or MNIST's from a folder of yours.

scikit-learn carries 1,797 images of 8 x 8 pixels. MNIST is read from the IDX files of
its authors, gzipped or not; without `train-*` the test images serve for both training
and observation, which stay apart.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from learndyn.errors import BadInput


CLASSES = 10
_SMALLEST = 8
"""Pixels of a side that two poolings leave something of."""
_MOST_BYTES = 2**30
"""Of one IDX file, decompressed; MNIST's largest has 47 million."""
_UNSIGNED_BYTE = 0x08
"""The only type of IDX file that MNIST uses."""


@dataclass(frozen=True, eq=False)
class Digits:
    """Images with their labels, and what each may be used for."""

    name: str
    images: Float[np.ndarray, "image side side"]
    """0 is paper, 1 is ink; float32."""
    labels: Int[np.ndarray, " image"]
    trainable: Bool[np.ndarray, " image"]
    """Whether it may be learnt."""
    observed: Bool[np.ndarray, " image"]
    """Whether it may be observed; never both for one image of a split."""

    @property
    def side(self) -> int:
        """Pixels of a side."""
        return self.images.shape[1]


def load_digits(folder: Path | None = None) -> Digits:
    """MNIST from the IDX files in `folder`, or scikit-learn's digits.

    Raises:
        BadInput: if scikit-learn is missing, or a file is missing, damaged or no IDX
            file, or images and labels do not belong together.
    """
    if folder is None:
        return _from_scikit_learn()
    test = _pair(folder, "t10k")
    if test is None:
        raise BadInput(
            f"{folder} has no t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, with "
            "or without .gz. Name the folder that holds MNIST's IDX files."
        )
    parts = [test]
    train = _pair(folder, "train")
    if train is not None:
        parts.append(train)
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    of_test = np.arange(len(labels)) < len(test[1])
    both = np.ones(len(labels), dtype=bool)
    return Digits(
        f"{folder.resolve().name}, IDX files",
        images.astype(np.float32) / np.float32(255),
        labels.astype(np.int64),
        trainable=both if train is None else ~of_test,
        observed=both if train is None else of_test,
    )


def split(
    digits: Digits, per_class: Mapping[str, int], observed: frozenset[str], seed: int
) -> dict[str, Int[np.ndarray, "class image"]]:
    """Draw disjoint sets of images, each with equally many of every class.

    Args:
        digits: What to draw from.
        per_class: Images per class of each set; all are scaled down if too few.
        observed: Names of the sets that are observed; the others are learnt.
        seed: Of the draw.

    Raises:
        BadInput: if a set would have fewer than 5 images of a class.
    """
    chance = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.labels), generator=chance).numpy()
    rows = [order[digits.labels[order] == label] for label in range(CLASSES)]
    scale = min(1.0, *(_room(digits, mine, per_class, observed) for mine in rows))
    sizes = {name: int(count * scale) for name, count in per_class.items()}
    if min(sizes.values()) < 5:
        counts = [len(mine) for mine in rows]
        raise BadInput(
            f"{digits.name} has too few images of a digit: {counts} of 0 to 9, "
            f"{int(digits.trainable.sum())} of them to learn and "
            f"{int(digits.observed.sum())} to observe. Give {sum(per_class.values())} "
            "images of each digit, and at least a tenth of that."
        )
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in sizes}
    for mine in rows:
        left = mine
        for name, count in sizes.items():
            usable = (digits.observed if name in observed else digits.trainable)[left]
            taken = left[usable][:count]
            drawn[name].append(taken)
            left = left[~np.isin(left, taken)]
    return {name: np.stack(parts) for name, parts in drawn.items()}


def _room(
    digits: Digits,
    rows: Int[np.ndarray, " image"],
    per_class: Mapping[str, int],
    observed: frozenset[str],
) -> float:
    """What share of the images that `per_class` asks for one class has."""
    n_observed = sum(count for name, count in per_class.items() if name in observed)
    learnt = sum(per_class.values()) - n_observed
    shares = (
        len(rows) / (n_observed + learnt),
        digits.observed[rows].sum() / max(1, n_observed),
        digits.trainable[rows].sum() / max(1, learnt),
    )
    return float(min(shares))


def _from_scikit_learn() -> Digits:
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError as error:
        raise BadInput(
            "scikit-learn, which carries the 8 x 8 digits, is not installed: "
            "pip install 'learndyn[paper]'. Or name a folder with MNIST's IDX files."
        ) from error
    arrays = bundled(return_X_y=True)
    images, labels = (np.asarray(part) for part in arrays)
    usable = np.ones(len(labels), dtype=bool)
    return Digits(
        "scikit-learn's digits",
        images.reshape(-1, 8, 8).astype(np.float32) / np.float32(16),
        labels.astype(np.int64),
        trainable=usable,
        observed=usable,
    )


def _pair(
    folder: Path, part: str
) -> tuple[UInt8[np.ndarray, "image side side"], UInt8[np.ndarray, " image"]] | None:
    """Images and labels of one part; None where neither is there."""
    paths = [
        _file(folder, f"{part}-{name}")
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    if paths[0] is None and paths[1] is None:
        return None
    if paths[0] is None or paths[1] is None:
        there = paths[0] or paths[1]
        raise BadInput(f"{there} lacks its partner: give images and labels.")
    images, labels = _read_idx(paths[0], 3), _read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise BadInput(
            f"{paths[0]} has {len(images)} images, {paths[1].name} has {len(labels)} "
            "labels: they do not belong together."
        )
    count, tall, wide = images.shape
    if tall != wide or tall < _SMALLEST:
        raise BadInput(
            f"{paths[0]} has {count} images of {tall} x {wide} pixels. Squares of "
            f"{_SMALLEST} or more are needed."
        )
    if count and labels.max() >= CLASSES:
        raise BadInput(
            f"{paths[1]} has the label {labels.max()}: digits go from 0 to 9."
        )
    return images, labels


def _file(folder: Path, name: str) -> Path | None:
    candidates = [folder / name, folder / f"{name}.gz"]
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """An IDX file of unsigned bytes with so many dimensions, gzipped or not.

    Two zero bytes, the type, the number of dimensions, each size as a big-endian
    32-bit number, then the values (Y. LeCun's page of MNIST).

    Raises:
        BadInput: if it is no such file, damaged, too short, too long or too large.
    """
    try:
        with path.open("rb") as plain:
            if path.suffix != ".gz":
                return _read(plain, path, dimensions)
            with gzip.GzipFile(fileobj=plain) as file:
                return _read(file, path, dimensions)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{path} is damaged: {error}. Download it again.") from error


def _read(
    file: io.BufferedReader | gzip.GzipFile, path: Path, dimensions: int
) -> np.ndarray:
    magic = file.read(4)
    if magic != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
        raise BadInput(
            f"{path} begins with the bytes {magic.hex(' ') or 'none'}; an IDX file of "
            f"unsigned bytes in {dimensions} dimensions begins with 00 00 08 "
            f"{dimensions:02x}."
        )
    head = file.read(4 * dimensions)
    if len(head) < 4 * dimensions:
        raise BadInput(f"{path} ends within its head, after {4 + len(head)} bytes.")
    sizes = struct.unpack(f">{dimensions}I", head)
    count = int(np.prod(sizes, dtype=object))
    shape = " x ".join(map(str, sizes))
    if count > _MOST_BYTES:
        raise BadInput(
            f"{path} says that it holds {shape} = {count:,} values; at most "
            f"{_MOST_BYTES:,} are read."
        )
    values = file.read(count + 1)
    if len(values) != count:
        has = "more" if len(values) > count else f"{len(values):,}"
        raise BadInput(
            f"{path} says that it holds {shape} = {count:,} values, and has {has}. "
            "Download it again."
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(sizes)
