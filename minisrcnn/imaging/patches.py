"""Patches: cut out of images, merged again, flipped and rotated.

With a window of `size` pixels moved by `stride`, an image of H x W gives rows x cols patches,

    rows = (H - size) // stride + 1        cols = (W - size) // stride + 1

numbered rows outermost: patch n = r * cols + c starts at pixel (r * stride, c * stride). So
extraction is the linear map

    p[n, i, j] = image[r * stride + i, c * stride + j]

and its adjoint, `sum_patches`, adds every patch back where it came from:
<extract(image), p> = <image, sum(p)>.

Training draws patches at random from many images: `PatchIndex` is a table of where they are
(three integers a patch), and `gather` copies out just the ones that are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..arguments import check_integer

Array = NDArray[Any]


@dataclass(frozen=True)
class PatchSizes:
    """The sizes of a recipe: inputs, labels in their middle, and how far apart patches lie.

    Valid convolutions take `padding` pixels off every side, (f1 + f2 + f3 - 3) / 2 for a
    network f1-f2-f3: the label is the part of the truth that the output covers.
    """

    input_size: int
    label_size: int
    train_stride: int
    test_stride: int

    def __post_init__(self) -> None:
        for name in ("input_size", "label_size", "train_stride", "test_stride"):
            check_integer(name, getattr(self, name))
        if self.label_size > self.input_size or (self.input_size - self.label_size) % 2:
            raise ValueError(
                f"label_size is {self.label_size}, want {self.input_size} less an even number"
            )

    @property
    def padding(self) -> int:
        """Pixels between the border of an input and the border of its label."""
        return (self.input_size - self.label_size) // 2


#: The paper's and the design notes' sizes for 9-1-5 (section 4.1: f_sub = 33, stride 14). Testing
#: at the stride of the label size makes the outputs lie side by side, for `merge_patches`.
NOTES = PatchSizes(input_size=33, label_size=21, train_stride=14, test_stride=21)


def _image(image: Any, name: str = "image") -> Array:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} is a {type(image).__name__}, want a NumPy array")
    if image.ndim != 2:
        raise ValueError(f"{name} has shape {image.shape}, want (H, W)")
    return image


def _patches(patches: Any, grid: Any) -> tuple[Array, int, int]:
    """Return checked patches as (N, h, w), and the grid's rows and columns."""
    if not isinstance(patches, np.ndarray):
        raise TypeError(f"patches is a {type(patches).__name__}, want a NumPy array")
    if patches.ndim == 4 and patches.shape[1] == 1:
        patches = patches[:, 0]
    if patches.ndim != 3:
        raise ValueError(f"patches has shape {patches.shape}, want (N, h, w) or (N, 1, h, w)")
    try:
        rows, cols = grid
    except (TypeError, ValueError):
        raise ValueError(f"grid is {grid!r}, want (rows, cols)") from None
    rows, cols = check_integer("grid rows", rows), check_integer("grid cols", cols)
    if rows * cols != len(patches):
        raise ValueError(f"grid is {rows} * {cols}, want rows * cols = {len(patches)} patches")
    return patches, rows, cols


def patch_grid(shape: Sequence[int], size: int, stride: int) -> tuple[int, int]:
    """How many patches lie below and beside each other in an image of `shape` (H, W).

    Raises
    ------
    TypeError, ValueError
        For a size or stride that is not an integer above 0, or a patch larger than the image.
    """
    size, stride = check_integer("size", size), check_integer("stride", stride)
    H, W = shape
    if size > min(H, W):
        raise ValueError(f"size is {size}, want at most the image's {H}x{W}")
    return (H - size) // stride + 1, (W - size) // stride + 1


def extract_patches(image: Array, size: int, stride: int) -> tuple[Array, tuple[int, int]]:
    """All patches of an image, rows outermost.

    Parameters
    ----------
    image : ndarray, shape (H, W)
    size, stride : int
        Pixels, both above 0.

    Returns
    -------
    patches : ndarray, shape (rows * cols, size, size)
        A copy, contiguous: patches that overlap share nothing.
    grid : (rows, cols)

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or shape, or a patch larger than the image.
    """
    image = _image(image)
    rows, cols = patch_grid(image.shape, size, stride)
    windows = sliding_window_view(image, (size, size))[::stride, ::stride]
    # np.array: a bare reshape would at times be a view, of what is not ours to hand out
    return np.array(windows, order="C").reshape(rows * cols, size, size), (rows, cols)


class PatchIndex:
    """Where the patches of many images are: a table that is computed, not stored.

    Row n is (image number, y, x of the patch's first pixel); image by image, rows outermost.
    ``index[numbers]`` gives the rows of an array of numbers, so that what is held does not grow
    with the number of patches.

    Parameters
    ----------
    shapes : sequence of (H, W), or ndarray of int, shape (I, 2)
        Of the images; one smaller than a patch has none.
    size, stride : int

    Attributes
    ----------
    shapes : ndarray of int, shape (I, 2)
    starts : ndarray of int, shape (I + 1,)
        The number of each image's first patch; last, how many there are in all.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, shape or range.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]] | NDArray[np.integer], size: int, stride: int
    ) -> None:
        size, self.stride = check_integer("size", size), check_integer("stride", stride)
        self.shapes = np.asarray(shapes, np.int64) if len(shapes) else np.empty((0, 2), np.int64)
        if self.shapes.ndim != 2 or self.shapes.shape[1] != 2:
            raise ValueError(f"shapes has shape {self.shapes.shape}, want (I, 2)")
        grid = np.maximum((self.shapes - size) // self.stride + 1, 0)
        self._columns = grid[:, 1]
        self.starts = np.concatenate([[0], np.cumsum(grid.prod(axis=1))])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def images(self, numbers: NDArray[np.integer]) -> NDArray[np.intp]:
        """Return the images that patches are of, one number each."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def __getitem__(self, numbers: NDArray[np.integer] | slice) -> NDArray[np.intp]:
        """Return rows of the table, shape (N, 3)."""
        if isinstance(numbers, slice):
            numbers = np.arange(*numbers.indices(len(self)))
        numbers = np.asarray(numbers)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"numbers go from {numbers.min()} to {numbers.max()}, want 0 to "
                             f"{len(self) - 1}")
        rows = np.empty((len(numbers), 3), np.intp)
        rows[:, 0] = self.images(numbers)
        y, x = np.divmod(numbers - self.starts[rows[:, 0]], self._columns[rows[:, 0]])
        rows[:, 1], rows[:, 2] = y * self.stride, x * self.stride
        return rows


def gather(
    images: Sequence[Array],
    index: NDArray[np.integer],
    size: int,
    *,
    offset: int = 0,
    out: Array | None = None,
) -> Array:
    """Copy out the patches that `index` names.

    Parameters
    ----------
    images : sequence of ndarray, each (H, W), or each (C, H, W)
    index : ndarray of int, shape (N, 3)
        Rows of a `PatchIndex`, in any order.
    size : int
    offset : int
        Added to y and x: the recipe's padding, for labels in the middle of their inputs.
    out : ndarray, shape (N, size, size) or (N, C, size, size), optional
        Written to and returned, instead of a fresh array.

    Returns
    -------
    ndarray, shape (N, size, size) or (N, C, size, size), dtype of the images

    Raises
    ------
    TypeError, ValueError, IndexError
        For an argument of the wrong type or shape, or a patch that is not all inside its image.
    """
    size, offset = check_integer("size", size), check_integer("offset", offset, 0)
    if not isinstance(index, np.ndarray) or not np.issubdtype(index.dtype, np.integer):
        raise TypeError(
            f"index is {getattr(index, 'dtype', type(index))}, want an integer array"
        )
    if index.ndim != 2 or index.shape[1] != 3:
        raise ValueError(f"index has shape {index.shape}, want (N, 3)")
    first = images[0] if len(images) else np.empty((0, 0))
    shape = (len(index), *first.shape[:-2], size, size)
    if out is None:
        out = np.empty(shape, first.dtype)
    elif out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, want {shape}")
    for n, (number, y, x) in enumerate(index.tolist()):
        image = images[number]
        y, x = y + offset, x + offset
        H, W = image.shape[-2:]
        if not (0 <= y <= H - size and 0 <= x <= W - size):
            raise IndexError(
                f"index: patch {n} at ({y}, {x}), {size} pixels wide, "
                f"is not inside image {number} of {H}x{W}"
            )
        out[n] = image[..., y : y + size, x : x + size]
    return out


def extract_pairs(
    input_: Array, label: Array, sizes: PatchSizes = NOTES, *, stride: int | None = None
) -> tuple[Array, Array, tuple[int, int]]:
    """Return inputs and labels of one image, as the design notes cut them.

    Parameters
    ----------
    input_, label : ndarray, both shape (H, W)
        What `prepare` returns.
    sizes : PatchSizes
    stride : int, optional
        ``sizes.train_stride`` where None; ``sizes.test_stride`` gives what can be merged.

    Returns
    -------
    x : ndarray, shape (N, input_size, input_size)
    t : ndarray, shape (N, label_size, label_size)
        The middle of the same place in `label`, `sizes.padding` pixels in.
    grid : (rows, cols)

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or shape, or an image smaller than a patch.
    """
    if _image(input_, "input_").shape != _image(label, "label").shape:
        raise ValueError(f"label has shape {label.shape}, want the shape of input_, {input_.shape}")
    stride = sizes.train_stride if stride is None else stride
    x, grid = extract_patches(input_, sizes.input_size, stride)
    H, W = label.shape
    middle = label[sizes.padding : H - sizes.padding, sizes.padding : W - sizes.padding]
    t, _ = extract_patches(middle, sizes.label_size, stride)
    return x, t, grid


def merge_patches(patches: Array, grid: tuple[int, int]) -> Array:
    """Lay tiles side by side, rows outermost: for patches that do not overlap.

    For patches that overlap, see `average_patches`. This is the merge of the design notes::

        merged[r * h + i, c * w + j] = patches[r * cols + c, i, j]

    Parameters
    ----------
    patches : ndarray, shape (N, h, w) or (N, 1, h, w)
    grid : (rows, cols), rows * cols = N

    Returns
    -------
    ndarray, shape (rows * h, cols * w)
        Smaller than the image that the inputs were cut from; `merge_crop` says by how much.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or shape, or a grid of another number of patches.
    """
    patches, rows, cols = _patches(patches, grid)
    _, h, w = patches.shape
    tiles = patches.reshape(rows, cols, h, w).transpose(0, 2, 1, 3)
    return np.array(tiles, order="C").reshape(rows * h, cols * w)


@dataclass(frozen=True)
class MergeCrop:
    """What a merge keeps of an image of `shape`: rows top:bottom, columns left:right."""

    shape: tuple[int, int]
    grid: tuple[int, int]
    top: int
    bottom: int
    left: int
    right: int

    @property
    def window(self) -> tuple[slice, slice]:
        """``image[window]`` lies pixel upon pixel with the merged image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def __str__(self) -> str:
        (H, W), h, w = self.shape, self.bottom - self.top, self.right - self.left
        return (
            f"keeps {h}x{w} of {H}x{W} pixels: crops {self.top} at the top, {H - self.bottom} at "
            f"the bottom, {self.left} at the left, {W - self.right} at the right"
        )


def merge_crop(shape: Sequence[int], sizes: PatchSizes = NOTES) -> MergeCrop:
    """By how much the design notes' merge crops an image of `shape` (H, W).

    The network's outputs (`label_size`, `test_stride` apart) cover neither the padding nor what
    is left over at the bottom and right.

    Raises
    ------
    ValueError
        Where the image is smaller than an input, or outputs would not lie side by side.
    """
    if sizes.test_stride != sizes.label_size:
        raise ValueError(
            f"sizes.test_stride is {sizes.test_stride}, want label_size, {sizes.label_size}"
        )
    rows, cols = patch_grid(shape, sizes.input_size, sizes.test_stride)
    start = sizes.padding
    return MergeCrop(
        shape=(int(shape[0]), int(shape[1])),
        grid=(rows, cols),
        top=start,
        bottom=start + rows * sizes.label_size,
        left=start,
        right=start + cols * sizes.label_size,
    )


def sum_patches(
    patches: Array, grid: tuple[int, int], stride: int, shape: Sequence[int] | None = None
) -> Array:
    """Add every patch back where it was cut out: the adjoint of `extract_patches`.

    Parameters
    ----------
    patches : ndarray, shape (N, h, w) or (N, 1, h, w)
    grid : (rows, cols), rows * cols = N
    stride : int
    shape : (H, W), optional
        Of the image; just what the patches cover where None.

    Returns
    -------
    ndarray, shape (H, W), dtype of `patches`
        ``image[y, x] = sum of p[n, i, j] over all r * stride + i = y, c * stride + j = x``; zero
        where no patch lies.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or shape, or patches that reach beyond `shape`.
    """
    patches, rows, cols = _patches(patches, grid)
    stride = check_integer("stride", stride)
    _, h, w = patches.shape
    least_H, least_W = (rows - 1) * stride + h, (cols - 1) * stride + w
    H, W = (least_H, least_W) if shape is None else shape
    if least_H > H or least_W > W:
        raise ValueError(f"shape is {H}x{W}, want at least {least_H}x{least_W}")
    image = np.zeros((H, W), patches.dtype)
    tiles = patches.reshape(rows, cols, h, w)
    for i in range(h):  # one pixel of all patches at a time: no two of these share a place
        for j in range(w):
            image[i : i + rows * stride : stride, j : j + cols * stride : stride][:rows, :cols] += (
                tiles[:, :, i, j]
            )
    return image


def average_patches(
    patches: Array, grid: tuple[int, int], stride: int, shape: Sequence[int] | None = None
) -> Array:
    """Put overlapping patches together, each pixel the mean of the patches that hold it.

    Takes an image back from its own patches: ``average_patches(*extract_patches(image, ...))``.

    Parameters
    ----------
    patches, grid, stride, shape
        As for `sum_patches`; float patches.

    Returns
    -------
    ndarray, shape (H, W), dtype of `patches`
        NaN where no patch lies (a remainder at the border, gaps of a stride above the size).

    Raises
    ------
    TypeError, ValueError
        As `sum_patches`, and for patches that are not floats.
    """
    total = sum_patches(patches, grid, stride, shape)
    if not np.issubdtype(total.dtype, np.floating):
        raise TypeError(f"patches has dtype {total.dtype}, want floats")
    count = sum_patches(np.ones(patches.shape, total.dtype), grid, stride, total.shape)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def augment(patches: Array, code: int | NDArray[np.integer]) -> Array:
    """Flip and rotate patches: the eight symmetries of the square.

    Parameters
    ----------
    patches : ndarray, shape (N, size, size)
    code : int or ndarray of int, shape (N,), in 0..7
        For all patches, or one each: ``code % 4`` quarter turns, anticlockwise, after a flip left
        to right where ``code >= 4``. 0 leaves a patch as it is. Give inputs and labels the same.

    Returns
    -------
    ndarray, shape (N, size, size)
        A contiguous copy.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, shape or range, or patches that are not square.
    """
    if not isinstance(patches, np.ndarray):
        raise TypeError(f"patches is a {type(patches).__name__}, want a NumPy array")
    if patches.ndim != 3 or patches.shape[1] != patches.shape[2]:
        raise ValueError(f"patches has shape {patches.shape}, want (N, size, size)")
    codes = np.asarray(code)
    if not np.issubdtype(codes.dtype, np.integer):
        raise TypeError(f"code has dtype {codes.dtype}, want integers")
    if codes.shape not in ((), (len(patches),)):
        raise ValueError(
            f"code has shape {codes.shape}, want one number or one for each of {len(patches)}"
        )
    if codes.size and (codes.min() < 0 or codes.max() > 7):
        raise ValueError(f"code is {codes.min()} to {codes.max()}, want 0 to 7")
    N, size, _ = patches.shape
    places = _symmetries(size)[np.broadcast_to(codes, N)]
    turned = np.take_along_axis(patches.reshape(N, size * size), places, axis=1)
    return turned.reshape(patches.shape)


@lru_cache(maxsize=8)
def _symmetries(size: int) -> NDArray[np.intp]:
    """Return where each pixel of a flipped or rotated patch comes from, (8, size * size)."""
    here = np.arange(size * size).reshape(size, size)
    rotated = [np.rot90(image, turns) for image in (here, here[:, ::-1]) for turns in range(4)]
    return np.stack(rotated).reshape(8, -1)
