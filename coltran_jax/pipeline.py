"""`Colorizer`: a photo through the three stages, in memory.

Stage 1 draws coarse colours at 64x64, stage 2 refines them to 8 bit, stage 3
makes 256x256 of it (the sizes are the models'). `size='original'` then gives
the colour to the photo itself: the whole photo is scaled until its long side
is 256 and mirrored beyond its edges to a square, so nothing is cropped away;
of the result only the chroma is taken, joined to the photo's own luminance.
"""

import dataclasses

import jax
import numpy as np
from PIL import Image

from coltran_jax import (
  checkpoint,
  color,
  decoding_rule,
  hints,
  image,
  models,
  photo,
  sampling,
)

STAGES = ('colorizer', 'color_upsampler', 'spatial_upsampler')
SIZES = ('original', 256)


@dataclasses.dataclass(frozen=True)
class Stages:
  """What each stage made of B gray pictures, all uint8 [B, h, w, 3].

  coarse: 512 colours at low resolution. low: 8 bit at low resolution. full:
  high resolution, or None if that stage was left out. log_probs: float32
  [B, h, w], of each coarse colour (nats). entropy: float32 [B, h, w], of each
  coarse colour before it was drawn (bits), if asked for. Where pictures are the
  mean of M draws, coarse, log_probs and entropy are of each draw, [B M, ...].
  """

  coarse: np.ndarray
  low: np.ndarray
  full: np.ndarray | None
  log_probs: np.ndarray
  entropy: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Coloring:
  """One coloring of a photo, and what the model says about it.

  pixels: [H, W, 3]. bits_per_dim: of its coarse colours, less is more likely;
  entropy: float32 [h, w] in bits, of the coarse colour at each place of the
  photo before it was drawn, if asked for. Means over its draws, if there are more.
  Both None where a model has no likelihood.
  """

  pixels: np.ndarray
  bits_per_dim: float | None = None
  entropy: np.ndarray | None = None


class Colorizer:
  """Colours photos; `from_pretrained` makes one.

  stages: {stage: (model, params)}, of `STAGES`, also an attribute; without the
  spatial upsampler only `fast=True` works. chunk: lines that upsamplers which are
  not small work on at a time (less memory and faster on a CPU), None for all.
  decoding: what draws take that say nothing else, also an attribute; what is not in
  it is `decoding_rule.DEFAULTS`'.
  """

  def __init__(self, stages, chunk=8, decoding=None):
    self.decoding = decoding_rule.DEFAULTS | (decoding or {})
    self.stages = {}
    for stage, (model, params) in stages.items():
      if stage != 'colorizer':
        model = model.clone(chunk=models.chunk(model, chunk))
      self.stages[stage] = (model, jax.device_put(params))

  @classmethod
  def from_pretrained(cls, weights, fast=False, chunk=8):
    """Returns a Colorizer of a checkpoint directory, or of a shipped name.

    fast: load only what `fast=True` needs.

    Raises CheckpointError if a stage is missing or wrong.
    """
    directory = checkpoint.find(weights)
    stages = {
      stage: load_stage(directory, stage)
      for stage in (STAGES[:2] if fast else STAGES)
    }
    _check_resolutions(directory, stages)
    config = checkpoint.read_config(directory / 'colorizer' / 'config.json')
    return cls(stages, chunk=chunk, decoding=config['decoding'])

  def __call__(self, source, size='original', **options):
    """Returns `num_samples` colourings of one photo, of the photo's kind.

    Args:
      source: a path or PIL image (PIL images in RGB come back), bytes of a file
        (the same format comes back, PNG for BMP, HEIF, AVIF) or a uint8 or uint16
        array [H, W(, C)] (arrays [H, W, 3] come back: of that dtype, uint8 if
        size is 256).
      size: 'original' keeps the photo's size and luminance; 256 gives the
        published central square (of smaller models, joined to its luminance).
      options: those of `draw`.

    Raises:
      photo.PhotoError: the source cannot be read or the result not encoded.
      ValueError: options that make no sense.
    """
    return as_source(source, self, size=size, **options)

  def colorize(self, read, **options):
    """Returns a list of [H, W, 3] arrays of a `photo.Photo`; see `draw`."""
    return [coloring.pixels for coloring in self.draw(read, **options)]

  def draw(
    self,
    read,
    num_samples=1,
    seed=0,
    temperature=None,
    min_p=None,
    encoder_weight=None,
    vividness=None,
    mean_of=None,
    size='original',
    sampler='exact',
    fast=False,
    guide=None,
    uncertainty=False,
  ):
    """Returns a list of `Coloring`s of a `photo.Photo`.

    Their pixels are uint8, or uint16 for a 16-bit photo at its original size.

    Args:
      read: the photo.
      num_samples: how many; each is another draw.
      seed: sample i of a photo depends on seed and i, on no other photo.
      temperature: of the coarse colours; 0 = the most probable at each pixel,
        None = what the weights ask for.
      min_p: draw no colour less probable than this share of the most probable
        one, None = what the weights ask for.
      encoder_weight, vividness: see `encoder_guidance`; None = what the weights
        ask for.
      mean_of: the colours of so many draws, refined by stage two, are averaged
        before stage three: what they agree on stays, the speckle of each goes. Every
        other one is drawn of the mirrored photo, so that they err less alike. 1 to
        64, None = what the weights ask for.
      size: 'original' or 256, see `__call__`.
      sampler: 'exact' or 'reference', see `sampling.sample`, `.upsample`.
      fast: leave out stage three: its detail is the photo's own anyway.
      guide: a `hints.Guide`, or None; needs size='original'.
      uncertainty: also give the entropy.

    Raises ValueError (`hints.HintError` of the guide): options that make no
    sense.
    """
    decoding = self.rule(
      temperature=temperature,
      min_p=min_p,
      encoder_weight=encoder_weight,
      vividness=vividness,
      mean_of=mean_of,
    )
    self._check(size, fast, guide)
    mean_of = decoding['mean_of']
    keys = sample_keys(seed, num_samples * mean_of)
    pixels = photo.eight_bit(read.pixels)
    side = self.side('colorizer' if fast else 'spatial_upsampler')
    small, picture, box = self.frame(pixels, size, fast)
    prior = None
    if guide:
      coarse = self._coarse(small[None])[0]
      prior = hints.prior(guide, read.pixels, side, coarse)
    stages = self.run(
      np.repeat(small[None], num_samples, axis=0),
      None if fast else np.repeat(picture[None], num_samples, axis=0),
      keys,
      decoding,
      sampler,
      prior,
      uncertainty,
    )
    colorings = []
    draws = (num_samples, mean_of, *stages.log_probs.shape[1:])
    bits = -stages.log_probs.reshape(draws).mean((1, 2, 3)) / np.log(2)
    if uncertainty:
      entropy = stages.entropy.reshape(draws).mean(1)
    for i, small in enumerate(stages.low if fast else stages.full):
      if size == 'original':
        small = image.join(read.pixels, image.crop(small, box))
      elif size != side:
        small = image.join(image.square(pixels, size), small)
      colorings.append(
        Coloring(
          pixels=hints.combine(guide, small) if guide else small,
          bits_per_dim=float(bits[i]),
          entropy=_placed(entropy[i], side, box) if uncertainty else None,
        )
      )
    return colorings

  def frame(self, pixels, size='original', fast=False):
    """Returns (gray [h, w], gray [H, W], box) of a photo, as the stages see it.

    pixels: uint8 [height, width, 1 or 3]. size, fast: as of `draw`. The first is
    for stage one, the second of the square of the last stage's side, in which
    the box (`image.fit`) holds the photo.
    """
    side = self.side('colorizer' if fast else 'spatial_upsampler')
    if size != 'original':
      pixels = image.square(pixels, min(pixels.shape[:2]))
    picture, box = image.fit(pixels, side)
    seen = max(self.stages['colorizer'][0].gray_resolution)
    if side < seen:
      fine = image.refit(pixels, seen, box, side)
    else:
      fine = image.square(picture, seen)
    return gray(fine), gray(picture), box

  def rule(self, **given):
    """Returns the decoding in full, of its numbers that are given (None: not).

    Raises ValueError if one is out of range, or nothing for this colorizer.
    """
    given = {name: value for name, value in given.items() if value is not None}
    rule = self.decoding | given
    decoding_rule.check(rule)
    if rule['encoder_weight'] and not self.stages['colorizer'][0].parallel_head:
      raise ValueError(
        'encoder_weight must be 0: this colorizer predicts nothing by its encoder '
        'alone'
      )
    return rule

  def _check(self, size, fast, guide):
    """Raises ValueError if options make no sense."""
    if size not in SIZES:
      raise ValueError(f'size must be one of {SIZES}, not {size!r}')
    if (fast or guide) and size != 'original':
      raise ValueError("fast and a guide need size='original'")
    if not fast and 'spatial_upsampler' not in self.stages:
      raise ValueError('without a spatial_upsampler only fast=True works')

  def run(
    self,
    gray,
    gray_full,
    keys,
    decoding=decoding_rule.DEFAULTS,
    sampler='exact',
    prior=None,
    uncertainty=False,
  ):
    """Returns the `Stages` of gray pictures.

    gray: int [B, h, w] at stage one's `gray_resolution`. gray_full: int [B, H, W]
    at stage three's, or None to leave it out. keys: [B M], for means of M draws.
    decoding: of `draw`, in full. prior: float [h, w, 512], of `hints`, or None.
    uncertainty: also give the entropy, of the model and the prior.
    """
    options = dict(decoding)
    mean_of = options.pop('mean_of')
    gray = np.repeat(gray, mean_of, axis=0)
    mirrored = np.arange(len(gray)) % mean_of % 2 == 1
    heard = None
    if prior is not None:
      # Against decoder and encoder together, a hint weighs as against the one.
      heard = prior * np.float32(1 + decoding['encoder_weight'])
      heard = np.broadcast_to(heard, (len(gray), *heard.shape))
      heard = _turned(heard, mirrored)
    sample = sampling.sample(
      *self.stages['colorizer'],
      _turned(gray, mirrored),
      keys,
      **options,
      mode=sampler,
      keep_logits=uncertainty,
      prior=heard,
    )
    sample = jax.tree.map(lambda x: _turned(np.asarray(x), mirrored), sample)
    entropy = None
    if uncertainty:
      entropy = sampling.entropy(
        sample.logits if prior is None else sample.logits + prior
      )
    coarse, low, full = self.refine(
      sample.codes, gray, gray_full, sampler, mean_of
    )
    return Stages(
      coarse=coarse,
      low=low,
      full=full,
      log_probs=sample.log_probs,
      entropy=entropy,
    )

  def refine(self, codes, gray, gray_full=None, sampler='exact', mean_of=1):
    """Returns (coarse, low, full) as in `Stages`, of codes int [B M, h, w].

    gray, gray_full, sampler: as of `run`; mean_of: M.
    """
    symbols = color.codes_to_symbols(codes)
    low = np.asarray(
      sampling.upsample(
        *self.stages['color_upsampler'], self._coarse(gray), symbols, sampler
      )
    )
    low = low.reshape(-1, mean_of, *low.shape[1:]).mean(1).round()
    low = low.astype(np.uint8)
    full = None
    if gray_full is not None:
      size = gray_full.shape[1:]
      blurry = np.stack([image.resize(one, *size) for one in low])
      full = np.asarray(
        sampling.upsample(
          *self.stages['spatial_upsampler'],
          gray_full,
          blurry.astype(np.int32),
          sampler,
        )
      )
    return color.from_symbols(symbols), low, full

  def _coarse(self, gray):
    """Returns int [B, h, w], stage one's gray as coarse as its colours."""
    return self.stages['colorizer'][0].coarse_gray(gray)

  def side(self, stage):
    """Returns the side in pixels of the squares that a stage works on."""
    return self.stages[stage][0].resolution[0]


def load_stage(directory, stage):
  """Returns (model, tree of parameters) of one stage in a directory.

  Raises CheckpointError if it is missing or wrong.
  """
  folder = directory / stage
  config = checkpoint.read_config(folder / 'config.json')
  if config['name'] != stage:
    raise checkpoint.CheckpointError(
      f"{folder / 'config.json'}: 'name' is {config['name']!r}, expected "
      f'{stage!r}'
    )
  try:
    model = models.build(stage, config['model'])
    expected = models.parameter_shapes(model)
  except Exception as error:  # What is wrong in it decides the kind.
    reason = ' '.join(str(error).split())[:300] or type(error).__name__
    raise checkpoint.CheckpointError(
      f'{folder / "config.json"}: {reason}'
    ) from error
  return model, checkpoint.load(folder, expected)[1]


def sample_keys(seed, num_samples):
  """Returns one key a picture: of the seed and its index, nothing else.

  Raises ValueError if either makes no sense.
  """
  if num_samples < 1:
    raise ValueError(f'num_samples must be 1 or more, not {num_samples}')
  if not 0 <= seed < 1 << 32:  # jax would take it modulo 2^32.
    raise ValueError(f'seed must be 0 to {(1 << 32) - 1}, not {seed}')
  return _keys(np.uint32(seed), np.arange(num_samples))


@jax.jit
def _keys(seed, index):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)


def as_source(source, colorizer, size, **options):
  """Returns a colorizer's colorings of any source, of the source's kind."""
  read = photo.read(source)
  colored = colorizer.colorize(read, size=size, **options)
  if isinstance(source, (bytes, bytearray, memoryview)):
    target = photo.at_size(read, size)
    if options.get('guide'):
      target = options['guide'].like(target)
    return [photo.encode(pixels, target) for pixels in colored]
  if isinstance(source, np.ndarray):
    return colored
  # PIL has no 16-bit RGB.
  return [Image.fromarray(photo.eight_bit(pixels)) for pixels in colored]


def _check_resolutions(directory, stages):
  """Raises CheckpointError unless the stages are square and fit together."""
  sizes = {stage: model.resolution for stage, (model, _) in stages.items()}
  for stage, (height, width) in sizes.items():
    if height != width:
      raise checkpoint.CheckpointError(
        f'{directory / stage}: photos need square models, this is '
        f'{height}x{width}'
      )
  if sizes['colorizer'] != sizes['color_upsampler']:
    raise checkpoint.CheckpointError(
      f'{directory}: the colorizer works at {sizes["colorizer"]}, the color '
      f'upsampler at {sizes["color_upsampler"]}; they do not belong together'
    )


def _turned(pictures, mirrored):
  """Returns [B, h, w, ...], those that bool [B] says with left for right."""
  turned = pictures.copy()
  turned[mirrored] = pictures[mirrored, :, ::-1]
  return turned


def _placed(cells, side, box):
  """Returns [h, w], the photo's part of cells [G, G] of a square."""
  index = np.arange(side) * len(cells) // side
  return image.crop(cells[index][:, index], box)


def gray(pixels):
  """Returns int32 [H, W] gray levels, 0..254, of uint8 [H, W, 1 or 3].

  254 is white as training knows it (`color.to_gray` rounds down): no model has
  seen 255.
  """
  if pixels.shape[-1] == 1:
    return np.minimum(pixels[..., 0], 254).astype(np.int32)
  return color.to_gray(pixels)
