"""What a person asks of a coloring, as a prior for the sampler.

A hint gives a colour to a place, a mask says what to draw anew of a coloring
that is kept. Both become float32 [G, G, V], added to the logits of the
colorizer's G x G grid (`sampling.sample`):

- A hinted cell gets one code, whatever the model says: among the codes that hold
  the photo's own gray there, the one whose chroma is nearest to the hint's.
- Codes are drawn row by row, so the model can carry a hint on to the right and
  below only. Therefore the hint is also a wish to the cells around it, above
  and left too: codes lose up to `_LOSS` nats by how far their chroma is from the
  hint's. The wish fades with the way from the hint, and edges of the photo's gray
  make the way long: it stays in the object. What the model is sure of it
  draws all the same.
- A cell that is kept gets the code that the kept coloring has there.
"""

import dataclasses

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from coltran_jax import color, image, photo

_NEVER = -1e9  # Added to a logit, finite: 0 times it must be a number.
_LOSS = 8.0  # Nats that a wish takes at most.
_NEAR = 5.0  # Distance in a*b* that costs half a nat.
_EDGE = 24.0  # Step of gray levels that a wish does not cross.
_REACH = 1.0  # How far a wish goes on even gray, of the grid's side.
_LEAST = 1 / 8  # Of a cell that a hint picture must cover.


class HintError(photo.PhotoError):
  """Hints, mask or kept coloring do not fit the photo; says which."""


@dataclasses.dataclass(frozen=True)
class Guide:
  """What is asked for, in the photo's own pixels.

  points: (x, y, (red, green, blue)) each. picture: uint8 [H, W, 4], a hint
  wherever alpha is 128 or more. mask: uint8 [H, W], what to draw anew: 255
  all, 0 not at all, or bool; keep: uint8 or uint16 [H, W, 3], the coloring that
  stays elsewhere (uint16 if the photo is; else a uint16 one is taken as sRGB).
  """

  points: tuple = ()
  picture: np.ndarray | None = None
  mask: np.ndarray | None = None
  keep: np.ndarray | None = None

  def __post_init__(self):
    if self.mask is not None and self.mask.dtype == bool:
      object.__setattr__(self, 'mask', self.mask.astype(np.uint8) * 255)

  def __bool__(self):
    arrays = (self.picture, self.mask, self.keep)
    return bool(self.points) or any(array is not None for array in arrays)

  def like(self, read):
    """Returns the Photo that a result takes its profile and such from.

    read: the photo. One of 8 bits left its profile when it was read; on the way back
    into it what is kept would change. One of 16 bits never left it.
    """
    if self.keep is None or read.pixels.dtype == np.uint16:
      return read
    return dataclasses.replace(read, icc_profile=None)

  def check(self, pixels):
    """Raises HintError unless all fits a photo's pixels [H, W, 1 or 3]."""
    height, width = pixels.shape[:2]
    if (self.mask is None) != (self.keep is None):
      raise HintError('a mask needs a coloring to keep, and that a mask')
    for name, array, channels in (
      ('hint picture', self.picture, (4,)),
      ('mask', self.mask, ()),
      ('kept coloring', self.keep, (3,)),
    ):
      if array is not None and array.shape != (height, width, *channels):
        raise HintError(
          f'the {name} is {list(array.shape)}, the photo needs '
          f'{[height, width, *channels]}'
        )
    if self.mask is not None and self.mask.dtype != np.uint8:
      raise HintError(f'the mask is of {self.mask.dtype}, not uint8 or bool')
    if self.keep is not None and self.keep.dtype == np.uint8 != pixels.dtype:
      raise HintError(
        'the kept coloring has 8 bits a channel and the photo 16; give one of 16'
      )
    for x, y, _ in self.points:
      if not (0 <= x < width and 0 <= y < height):
        raise HintError(
          f'the hint at {x},{y} is outside of the photo, {width}x{height}'
        )


def read(points=(), picture=None, mask=None, keep=None):
  """Returns a `Guide` of hints and of picture files (None: not given).

  mask: white or, in a picture with alpha, opaque white is drawn anew. Raises
  PhotoError if a file cannot be read.
  """
  layer = level = coloring = None
  if picture is not None:
    one = photo.read(picture)
    alpha = one.alpha
    if alpha is None:
      raise photo.PhotoError(f'{picture}: a hint picture needs transparency')
    rgb = np.broadcast_to(one.pixels, (*alpha.shape, 3))
    layer = photo.eight_bit(np.dstack([rgb, alpha]))
  if mask is not None:
    one = photo.read(mask)
    level = photo.eight_bit(one.pixels).max(axis=-1)
    if one.alpha is not None:
      level = np.minimum(level, photo.eight_bit(one.alpha))
  if keep is not None:
    one = photo.read(keep)
    coloring = np.broadcast_to(one.pixels, (*one.pixels.shape[:2], 3))
  return Guide(tuple(points), layer, level, coloring)


def prior(guide, pixels, side, gray):
  """Returns float32 [G, G, 512], what a guide adds to the colorizer's logits.

  Args:
    guide: a `Guide`.
    pixels: [H, W, 1 or 3], the photo's own.
    side: of the square that the photo is fitted into, see `image.fit`.
    gray: int [G, G], the photo's as the colorizer gets it.

  Raises HintError if the guide does not fit the photo, or a hint picture is empty.
  """
  guide.check(pixels)
  colors, hinted = _hinted(guide, pixels.shape[:2], side, len(gray))
  added = np.zeros((*gray.shape, color.NUM_CODES), np.float32)
  codes = np.zeros(gray.shape, np.int64)
  if hinted.any():
    strength, nearest = _reach(gray, hinted)
    near = strength > 0
    wanted = colors.reshape(-1, 3)[nearest[near]]
    distance, possible = _distances(gray[near], wanted)
    loss = np.minimum(distance**2 / (2 * _NEAR**2), _LOSS)
    added[near] = -strength[near][:, None] * loss
    codes[near] = np.where(possible, distance, np.inf).argmin(axis=-1)
  fixed = hinted
  if guide.keep is not None:
    kept = ~_covered(guide.mask, side, len(gray))
    picture = image.fit(photo.eight_bit(guide.keep), side)[0]
    kept_codes = color.to_codes(image.square(picture, len(gray)))
    codes = np.where(kept, kept_codes, codes)
    fixed = fixed | kept
  added[fixed] = _NEVER
  added[fixed, codes[fixed]] = 0
  return added


def combine(guide, pixels):
  """Returns [H, W, 3]: pixels where the mask is, else the kept coloring.

  Of the kept coloring's dtype and, where the mask is 0, its very values. pixels:
  uint8 or uint16 [H, W, 3], returned as they are if nothing is kept.
  """
  if guide.keep is None:
    return pixels
  mixed = guide.keep.copy()
  where = guide.mask > 0
  scale = np.iinfo(mixed.dtype).max / np.iinfo(pixels.dtype).max
  share = guide.mask[where][:, None] / np.float32(255)
  kept, new = mixed[where], pixels[where] * np.float32(scale)
  mixed[where] = np.rint(kept + share * (new - kept))
  return mixed


def _covered(mask, side, grid):
  """Returns bool [G, G]: cells of which the mask covers anything."""
  square = image.fit((mask > 0).astype(np.uint8) * 255, side)[0]
  return image.square(square, grid) > 0


def _hinted(guide, shape, side, grid):
  """Returns (colors uint8 [G, G, 3], hinted bool [G, G])."""
  colors = np.zeros((grid, grid, 3), np.uint8)
  hinted = np.zeros((grid, grid), bool)
  if guide.picture is not None:
    on = (guide.picture[..., 3:] >= 128).astype(np.uint8)
    layer = np.concatenate([guide.picture[..., :3] * on, on * 255], axis=-1)
    layer = image.square(image.fit(layer, side)[0], grid)
    share = layer[..., 3:] / 255
    hinted = share[..., 0] >= _LEAST
    if not hinted.any():
      raise HintError(
        'the hint picture has no colour that covers an eighth of a cell; its '
        'background must be transparent, its strokes wider'
      )
    filled = layer[..., :3] / np.maximum(share, _LEAST)
    colors = np.rint(np.minimum(filled, 255)).astype(np.uint8)
  for x, y, rgb in guide.points:
    cells = _cells_at(x, y, shape, side, grid)
    colors[cells], hinted[cells] = rgb, True
  return colors, hinted


def _cells_at(x, y, shape, side, grid):
  """Returns the indices of the cell that holds pixel x, y of the photo.

  And of those that hold its mirror images beyond the photo's edges.
  """
  height, width = image.fitted(*shape, side)
  places = image.mirrored(
    np.arange(height * width).reshape(height, width), side, side
  )
  at = (y * height // shape[0]) * width + x * width // shape[1]
  rows, columns = np.nonzero(places == at)
  return rows * grid // side, columns * grid // side


def _reach(gray, hinted):
  """Returns (strength float [G, G] 0..1, nearest int [G, G], flat indices).

  strength: 1 at a hint, 0 where none reaches. nearest: the hint that does.
  """
  index = np.arange(gray.size).reshape(gray.shape)
  pairs = [
    (index[:-1], index[1:]),
    (index[:, :-1], index[:, 1:]),
  ]
  start, end = (
    np.concatenate([pair[i].ravel() for pair in pairs]) for i in range(2)
  )
  step = (gray.ravel()[start] - gray.ravel()[end]) / _EDGE
  graph = sparse.coo_array(
    (step**2 + 1 / (_REACH * len(gray)), (start, end)), (gray.size,) * 2
  )
  way, _, nearest = csgraph.dijkstra(
    graph.tocsr(),
    directed=False,
    indices=np.flatnonzero(hinted),
    min_only=True,
    return_predecessors=True,
    limit=1.0,
  )
  strength = np.clip(1 - way**2, 0, 1).reshape(gray.shape)
  return strength, nearest.reshape(gray.shape)


def _distances(gray, wanted):
  """Returns (distance [N, 512], possible bool [N, 512]) of codes at N cells.

  Args:
    gray: int [N], the photo's.
    wanted: uint8 [N, 3], colours whose chroma is asked for.

  distance: in a*b*, of what each code means at that gray from the wanted
  chroma, as far as it exists at that lightness. possible: see
  `color.code_chroma`.
  """
  light = gray.astype(np.uint8)[:, None, None]
  target = image.join(light, wanted[:, None])[:, 0]
  target = np.asarray(color.to_lab(target / 255))[:, None, 1:]
  # Of all levels, not of those in the photo: the same program for any.
  ab, possible = map(np.asarray, color.code_chroma(np.arange(256)))
  return np.linalg.norm(ab[gray] - target, axis=-1), possible[gray]
