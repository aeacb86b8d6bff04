"""Colour profiles: pictures into sRGB, and back into what a photo came in."""

import functools
import io
import struct

import numpy as np
from PIL import Image, ImageCms

# Modes of PIL images that a profile for each colour space can speak of.
_MODES = {
  'GRAY': ('L', 'LA'),
  'RGB': ('L', 'LA', 'RGB', 'RGBA'),
  'CMYK': ('CMYK',),
}
_SAME = 2  # Profiles that differ by this many levels of 255 are one.
_BROKEN = (ImageCms.PyCMSError, OSError, TypeError, ValueError)


@functools.cache
def srgb():
  """A profile for sRGB, bytes."""
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  # It holds the time of day, but equal photos shall give equal files.
  return profile[:24] + struct.pack('>6H', 2000, 1, 1, 0, 0, 0) + profile[36:]


def _space(profile):
  """Colour space of a profile: 'GRAY', 'RGB', 'CMYK', ..."""
  profile = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
  return profile.xcolor_space.strip()


def _transform(source, target, source_mode, target_mode, flags=0):
  return ImageCms.buildTransform(
    io.BytesIO(source),
    io.BytesIO(target),
    source_mode,
    target_mode,
    ImageCms.Intent.RELATIVE_COLORIMETRIC,
    ImageCms.Flags.BLACKPOINTCOMPENSATION | flags,
  )


def rgb_only(profile):
  """The profile, bytes, if it is a sound one for RGB, else None."""
  try:
    return profile if profile and _space(profile) == 'RGB' else None
  except _BROKEN:
    return None


@functools.lru_cache(maxsize=8)
def _is_srgb(profile):
  """Whether an RGB profile means sRGB; raises what _BROKEN lists."""
  level = np.arange(0, 256, 51, dtype=np.uint8)
  grid = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(6, 36, 3)
  transform = _transform(profile, srgb(), 'RGB', 'RGB')
  moved = ImageCms.applyTransform(Image.fromarray(grid), transform)
  return np.abs(np.asarray(moved, np.int16) - grid).max() <= _SAME


def _gray_table(profile, space):
  """sRGB level of each of the 256 gray levels under a profile, uint8 [256]."""
  ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
  mode = 'L' if space == 'GRAY' else 'RGB'
  # Optimised, little-cms bends dark grays by up to ten levels.
  exact = ImageCms.Flags.NOOPTIMIZE
  transform = _transform(profile, srgb(), mode, 'RGB', exact)
  moved = ImageCms.applyTransform(ramp.convert(mode), transform)
  table = np.asarray(moved)[0, :, 1]
  same = np.abs(table.astype(np.int16) - np.arange(256)).max() <= _SAME
  return np.arange(256, dtype=np.uint8) if same else table


def to_srgb(image, profile):
  """A picture in sRGB, the profile for its RGB output, and notes.

  Args:
    image: PIL image of mode L, LA, RGB, RGBA or CMYK.
    profile: bytes or None.

  Returns:
    (PIL image L, LA, RGB or RGBA; bytes or None; tuple of one-line strings).
    The profile is the given one if it is for RGB, sRGB's own after one for
    gray or CMYK, and None where there was no profile that fits.
  """
  plain = image.convert('RGB') if image.mode == 'CMYK' else image
  if not profile:
    return plain, None, ()
  try:
    space = _space(profile)
    if image.mode not in _MODES.get(space, ()):
      return plain, None, (f'colour profile for {space} ignored',)
    target, notes = srgb(), ()
    if space == 'RGB':
      target, notes = _way_back(profile)
      if _is_srgb(profile):
        return image, target, notes
    if image.mode in ('L', 'LA'):
      table = _gray_table(profile, space).tolist()
      if image.mode == 'LA':
        table += range(256)
      return image.point(table), target, notes
    mode = 'RGB' if image.mode == 'CMYK' else image.mode
    transform = _transform(profile, srgb(), image.mode, mode)
    return ImageCms.applyTransform(image, transform), target, notes
  except _BROKEN:
    return plain, None, ('broken colour profile ignored',)


def _way_back(profile):
  """(profile, ()) if pictures can be converted to it, else (sRGB's, a note)."""
  try:
    _transform(srgb(), profile, 'RGB', 'RGB')
  except ImageCms.PyCMSError:
    return srgb(), ('one-way colour profile replaced by sRGB',)
  return profile, ()


def from_srgb(pixels, profile):
  """uint8 [H, W, 3] in the profile's RGB, of the same in sRGB."""
  if _is_srgb(profile):
    return pixels
  transform = _transform(srgb(), profile, 'RGB', 'RGB')
  image = Image.fromarray(pixels)
  return np.asarray(ImageCms.applyTransform(image, transform))
