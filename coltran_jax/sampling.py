"""Codes drawn from the colorizer, pictures from the upsamplers.

Axes: B batch, H height, W width. How a code is drawn: `sampling_tile`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from coltran_jax import models, sampling_tile

TILE = sampling_tile.TILE
_ENCODER_CHUNK = 16  # Lines that the encoder works on at a time, if not given.
MODES = ('exact', 'reference')


Sample = sampling_tile.Sample


def sample(
  model,
  params,
  gray,
  rng,
  *,
  temperature=1.0,
  min_p=0.0,
  encoder_weight=0.0,
  vividness=0.0,
  mode='exact',
  keep_logits=False,
  mesh=None,
  prior=None,
):
  """Returns a `Sample` of the colorizer's coarse colours for gray pictures.

  Args:
    model: a `models.colorizer.Colorizer`.
    params: its parameters.
    gray: int [B, ...], 0..255, of the model's `gray_resolution`.
    rng: typed keys [B], one a picture.
    temperature: divides the logits; 0 takes the most probable code.
    min_p: codes that are less probable than this share of the most probable one
      (0..1, at temperature 1, the prior counted) are not drawn: without it a rare
      code in hundreds of draws is a speck, on which the next ones build (min-p
      sampling, Nguyen et al. 2024). 0 draws from all.
    encoder_weight, vividness: what else is added to the logits that codes are drawn
      from, see `encoder_guidance`; 0 nothing.
    mode: 'exact' draws from the model as trained. 'reference' does what the
      published sampler does: the inner decoder's conditional layer norms see
      one row of the encoder's output where training averages over all.
    keep_logits: also return all logits.
    mesh: a mesh over whose `data` axis the batch is split; None = that of gray
      if gray is sharded over such an axis, else one device.
    prior: float [B, H, W, 512], added to the logits that codes are drawn from
      (log_probs and logits stay the model's own), see `hints.prior`. None draws
      from the model alone, by the program without it.

  Raises:
    ValueError: shapes or options that make no sense.
  """
  _check(model, gray, rng, temperature, min_p, encoder_weight, mode, prior)
  model = chunked(model)
  mesh = mesh or _mesh_of(gray)
  if mesh and 'data' not in mesh.shape:
    raise ValueError(f'the mesh has no axis data, only {mesh.axis_names}')
  batch = len(gray)
  shards = mesh.shape['data'] if mesh else 1
  rounds = -(-batch // (TILE * shards))
  # Spread evenly over tiles: a full one takes longer than one with a picture.
  tiles = rounds * shards
  counts = [batch // tiles + (tile < batch % tiles) for tile in range(tiles)]
  places = [
    tile * TILE + place
    for tile in range(tiles)
    for place in range(counts[tile])
  ]
  pictures = np.zeros((rounds, shards, TILE), int)
  pictures.ravel()[places] = np.arange(batch)
  counts = np.reshape(counts, (rounds, shards)).astype(np.int32)
  decoding = {
    'temperature': np.float32(temperature),
    'min_p': np.float32(min_p),
    # None: a program without it.
    'encoder_weight': np.float32(encoder_weight) if encoder_weight else None,
    'vividness': np.float32(vividness) if vividness else None,
  }
  out = [
    _sample_tiles(
      params,
      *_pick((gray, rng), pictures[i]),
      counts[i],
      decoding,
      # A round's at a time: it is 512 times as large as the rest.
      None if prior is None else prior[pictures[i]].astype(np.float32),
      model=model,
      mode=mode,
      keep_logits=keep_logits,
      mesh=mesh,
    )
    for i in range(rounds)
  ]
  return _join(out, np.array(places))


def chunked(model):
  """Returns the model with an encoder that works on few lines at a time."""
  if model.encoder_chunk is not None:
    return model
  return model.clone(encoder_chunk=models.chunk(model, _ENCODER_CHUNK))


def _check(model, gray, rng, temperature, min_p, encoder_weight, mode, prior):
  """Raises ValueError if inputs of `sample` make no sense."""
  if mode not in MODES:
    raise ValueError(f'mode must be one of {MODES}, not {mode!r}')
  if not 0 <= temperature <= 1e6:
    raise ValueError(f'temperature must be 0 to 1e6, not {temperature}')
  if not 0 <= min_p <= 1:
    raise ValueError(f'min_p must be 0 to 1, not {min_p}')
  if encoder_weight and not model.parallel_head:
    raise ValueError('this colorizer predicts nothing by its encoder alone')
  if gray.ndim != 3 or gray.shape[1:] != model.gray_resolution:
    raise ValueError(
      'gray must be [B, {}, {}], '.format(*model.gray_resolution)
      + f'not {list(gray.shape)}'
    )
  if not len(gray):
    raise ValueError('gray holds no picture')
  if rng.shape != gray.shape[:1]:
    raise ValueError(
      f'rng must be one key per picture, [{len(gray)}], not {list(rng.shape)}'
    )
  wanted = (len(gray), *model.resolution, model.num_codes)
  if prior is not None and prior.shape != wanted:
    raise ValueError(f'prior must be {list(wanted)}, not {list(prior.shape)}')


def entropy(logits):
  """Returns float32 [...] bits of the distribution of logits [..., V]."""
  log_p = jax.nn.log_softmax(logits)
  return np.asarray(-(jnp.exp(log_p) * log_p).sum(axis=-1) / np.log(2))


# Each by one program: the operations alone would be compiled one by one.
@jax.jit
def _pick(trees, index):
  """Returns the trees' arrays [B, ...] at an index [...]: [..., ...]."""
  return jax.tree.map(lambda x: x[index], trees)


@jax.jit
def _join(rounds, index):
  """Returns a tree of [B, ...] of one a round of [S, TILE, ...]; index: [B]."""

  def join(*xs):
    return jnp.stack(xs).reshape(-1, *xs[0].shape[2:])[index]

  return jax.tree.map(join, *rounds)


def _mesh_of(gray):
  """Returns the mesh over whose `data` axis the batch of gray is sharded."""
  if isinstance(gray, jax.core.Tracer):
    return None
  sharding = getattr(gray, 'sharding', None)
  if not isinstance(sharding, NamedSharding):
    return None
  return sharding.mesh if tuple(sharding.spec)[:1] == ('data',) else None


@functools.partial(
  jax.jit, static_argnames=('model', 'mode', 'keep_logits', 'mesh')
)
def _sample_tiles(
  params,
  gray,
  keys,
  counts,
  decoding,
  prior,
  *,
  model,
  mode,
  keep_logits,
  mesh,
):
  """Returns a Sample [S, TILE, ...] of gray [S, TILE, H, W], one tile a shard.

  decoding: {name: float []} of a `sampling_tile.Tile`, None for nothing.
  """

  def run(params, decoding, gray, keys, counts, prior):
    out = sampling_tile.Tile(
      model=model,
      params=params,
      gray=gray[0],
      keys=keys[0],
      count=counts[0],
      **decoding,
      exact=mode == 'exact',
      keep_logits=keep_logits,
      prior=None if prior is None else prior[0],
    ).sample()
    return jax.tree.map(lambda x: x[None], out)

  if mesh:
    split, whole = PartitionSpec('data'), PartitionSpec()
    run = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(whole, whole, split, split, split, split),
      out_specs=split,
      check_vma=False,
    )
  return run(params, decoding, gray, keys, counts, prior)


def upsample(model, params, gray, symbols, mode='exact'):
  """Returns the picture, uint8 [B, H, W, 3], that an upsampler predicts.

  Args:
    model: a color or spatial upsampler.
    params: its parameters.
    gray: int [B, H, W], 0..255.
    symbols: int [B, H, W, 3]: 3-bit for the color upsampler, 8-bit levels of
      the blurry picture for the spatial one.
    mode: 'exact' gives the mean level, whose expected squared error is least.
      'reference' gives the most probable one, as was published: where the model
      is not sure of a colour, that tends to gray.

  One picture and channel at a time: no more memory for many, and the same
  program whatever the batch.
  """
  one = functools.partial(_upsample_one, params, model=model, mode=mode)
  return jnp.stack([one(*xs) for xs in zip(gray, symbols, strict=True)])


@functools.partial(jax.jit, static_argnames=('model', 'mode'))
def _upsample_one(params, gray, symbols, *, model, mode):
  def one_channel(xs):
    symbols, channel = xs
    logits, _ = model.apply(
      {'params': params}, gray[None], symbols[None], channel[None]
    )
    if mode == 'reference':
      levels = jnp.argmax(logits[0], axis=-1)
    else:
      # A sum: as a product a TPU would round the levels to bfloat16.
      p = jax.nn.softmax(logits[0].astype(jnp.float32))
      levels = jnp.rint((p * jnp.arange(256.0)[None, None]).sum(axis=-1))
    return levels.astype(jnp.uint8)

  channels = (jnp.moveaxis(symbols, -1, 0), jnp.arange(3))
  return jnp.moveaxis(jax.lax.map(one_channel, channels), 0, -1)
