"""The autoregressive sampler: codes drawn from the colorizer, pixel by pixel.

Axes: B batch, T pictures of a tile, H height, W width, D features, V symbols.

What depends on gray alone is computed once a picture, what depends on the rows
above once a row; the pixel loop only runs the inner decoder on one pixel, with
cached keys and values. See design section 4.

A result depends on picture, weights and key only. How floats are summed depends
on the shapes of the products and on the program around them, so every picture
meets the same program whatever the batch: pictures are sampled in tiles of
`TILE`. A tile's empty places are skipped where work is done picture by picture,
and computed in vain in the pixel loop, where four pictures cost what one does
(what takes time there is the weights' way from the cache).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

TILE = 4
_ENCODER_CHUNK = 16  # Lines that the encoder works on at a time, if not given.
MODES = ('exact', 'reference')


class Sample(flax.struct.PyTreeNode):
  """codes int32 [B, H, W] 0..511, log_probs float32 [B, H, W] (nats, <= 0).

  log_probs: of each drawn code under the model, at temperature 1. logits
  float32 [B, H, W, 512] if asked for, else None.
  """

  codes: jax.Array
  log_probs: jax.Array
  logits: jax.Array | None = None


def sample(
  model,
  params,
  gray,
  rng,
  *,
  temperature=1.0,
  mode='exact',
  keep_logits=False,
  mesh=None,
):
  """Returns a `Sample` of the colorizer's coarse colours for gray pictures.

  Args:
    model: a `models.colorizer.Colorizer`.
    params: its parameters.
    gray: int [B, H, W], 0..255, at the model's resolution.
    rng: typed keys [B], one a picture.
    temperature: divides the logits; 0 takes the most probable code.
    mode: 'exact' draws from the model as trained. 'reference' does what the
      published sampler does: the inner decoder's conditional layer norms see
      one row of the encoder's output where training averages over all.
    keep_logits: also return all logits.
    mesh: a mesh over whose `data` axis the batch is split; None = one device.

  Raises:
    ValueError: shapes, mode or temperature that make no sense.
  """
  if mode not in MODES:
    raise ValueError(f'mode must be one of {MODES}, not {mode!r}')
  if not temperature >= 0:
    raise ValueError(f'temperature must be 0 or more, not {temperature}')
  if gray.ndim != 3 or tuple(gray.shape[1:]) != tuple(model.resolution):
    raise ValueError(
      f'gray must be [B, {model.resolution[0]}, {model.resolution[1]}], '
      f'not {list(gray.shape)}'
    )
  if rng.shape != gray.shape[:1]:
    raise ValueError(
      f'rng must be one key per picture, [{len(gray)}], not {list(rng.shape)}'
    )
  if model.encoder_chunk is None:
    model = model.clone(encoder_chunk=_ENCODER_CHUNK)
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
  places = jnp.array(places, jnp.int32)

  def spread(x):
    tiled = jnp.zeros((tiles * TILE, *x.shape[1:]), x.dtype).at[places].set(x)
    return tiled.reshape(rounds, shards, TILE, *x.shape[1:])

  gray = spread(jnp.asarray(gray, jnp.int32))
  key_data = spread(jax.random.key_data(rng))
  counts = jnp.array(counts, jnp.int32).reshape(rounds, shards)
  out = [
    _sample_tiles(
      params,
      gray[i],
      key_data[i],
      counts[i],
      jnp.float32(temperature),
      model=model,
      key_impl=str(jax.random.key_impl(rng)),
      mode=mode,
      keep_logits=keep_logits,
      mesh=mesh,
    )
    for i in range(rounds)
  ]
  return jax.tree.map(
    lambda *x: jnp.concatenate(x).reshape(tiles * TILE, *x[0].shape[2:])[
      places
    ],
    *out,
  )


@functools.partial(
  jax.jit, static_argnames=('model', 'key_impl', 'mode', 'keep_logits', 'mesh')
)
def _sample_tiles(
  params,
  gray,
  key_data,
  counts,
  temperature,
  *,
  model,
  key_impl,
  mode,
  keep_logits,
  mesh,
):
  """Returns a Sample [S, TILE, ...] of gray [S, TILE, H, W], one tile a shard."""

  def run(params, temperature, gray, key_data, counts):
    keys = jax.random.wrap_key_data(key_data[0], impl=key_impl)
    out = _sample_tile(
      model, params, gray[0], keys, counts[0], temperature, mode, keep_logits
    )
    return jax.tree.map(lambda x: x[None], out)

  if mesh:
    split, whole = PartitionSpec('data'), PartitionSpec()
    run = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(whole, whole, split, split, split),
      out_specs=split,
      check_vma=False,
    )
  return run(params, temperature, gray, key_data, counts)


def pick(logits, noise, temperature):
  """Returns int32 [...] codes drawn from logits [..., V] by the Gumbel trick.

  noise: standard Gumbel [..., V]. Temperature 0 takes the largest logit.
  """
  return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames='model')
def upsample(model, params, gray, symbols):
  """Returns the most probable picture, uint8 [B, H, W, 3], of an upsampler.

  Args:
    model: a color or spatial upsampler.
    params: its parameters.
    gray: int [B, H, W], 0..255.
    symbols: int [B, H, W, 3]: 3-bit for the color upsampler, 8-bit levels of
      the blurry picture for the spatial one.

  One picture and channel at a time: no more memory for many, and the same
  products whatever the batch.
  """

  def one_channel(xs):
    gray, symbols, channel = xs
    logits, _ = model.apply(
      {'params': params}, gray[None], symbols[None], channel[None]
    )
    return jnp.argmax(logits[0], axis=-1).astype(jnp.uint8)

  batch = len(gray)
  channel = jnp.tile(jnp.arange(3), batch)
  symbols = jnp.moveaxis(symbols, -1, 1).reshape(batch * 3, *gray.shape[1:])
  gray = jnp.repeat(gray, 3, axis=0)
  levels = jax.lax.map(one_channel, (gray, symbols, channel))
  return jnp.moveaxis(levels.reshape(batch, 3, *gray.shape[1:]), 1, -1)


def _each(count, body, state):
  """Returns state after body(i, own, shared) for a tile's `count` pictures.

  state: ([own state of each of the T pictures], shared state). Every picture
  has a loop of its own that runs once or not at all: so its big caches are
  updated in place. That the index comes from the loop makes these loops the
  same program, and all places in a tile give the same bits.
  """
  own, shared = state
  own = list(own)
  for place in range(TILE):
    own[place], shared = jax.lax.fori_loop(
      place,
      jnp.minimum(count, place + 1),
      lambda i, s: body(i, *s),
      (own[place], shared),
    )
  return own, shared


def _sample_tile(
  model, params, gray, keys, count, temperature, mode, keep_logits
):
  height, width = model.resolution

  def call(method, *args):
    return model.apply({'params': params}, *args, method=method)

  def encode(i):
    z = call('encode', jax.lax.dynamic_index_in_dim(gray, i))
    return z[0], call('condition_norms', z)

  def zeros(f, *args):
    return jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, *args)
    )

  # Once a picture: the encoder and the norms' conditions.
  encoded = zeros(jax.vmap(encode), jnp.arange(TILE))
  encoded = jax.lax.fori_loop(
    0,
    count,
    lambda i, all_: jax.tree.map(lambda a, x: a.at[i].set(x), all_, encode(i)),
    encoded,
  )
  z, (outer_norms, inner_norms) = encoded

  table, head_table = call('symbol_table')
  heads, size = head_table['q'].shape[1:]
  dtype = table.dtype

  def outer_cache():
    shape = (width, heads, height, size)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

  def outer_layer(layer, row, codes, i, cache, contexts):
    """Runs one layer of the outer decoder on a row of picture i."""
    if layer == 0:
      x = call('outer_inputs', codes[i, row], z[i, row], row)
    else:
      x = contexts[i]
    norms = jax.tree.map(lambda n: n[i], outer_norms[layer])
    x, cache = model.apply(
      {'params': params},
      layer,
      x,
      z[i, row],
      norms,
      cache,
      row,
      method='outer_layer',
    )
    return cache, contexts.at[i].set(x)

  def prepare_row(i, row, contexts):
    """Returns all that the pixels of a row of picture i need."""
    pixels = call('inner_row', contexts[i], z[i, row], row)
    if mode == 'exact':
      norms = jax.tree.map(lambda n: n[i], inner_norms)
    else:
      norms = call('inner_norms', z[i, row][None, None])
    norms = jax.tree.map(lambda n: n.reshape(-1), norms)  # [2D]
    key = jax.random.fold_in(keys[i], row)
    return pixels, norms, jax.random.gumbel(key, (width, model_codes))

  model_codes = head_table['q'].shape[0] - 1
  none = model_codes  # The symbol left of a row's first pixel.
  out = Sample(
    codes=jnp.zeros((TILE, height, width), jnp.int32),
    log_probs=jnp.zeros((TILE, height, width)),
    logits=jnp.zeros((TILE, height, width, model_codes))
    if keep_logits
    else None,
  )

  def each_row(row, carry):
    caches, contexts, rows, inner_caches, out = carry
    # The outer decoder on the row above, layer by layer: all pictures meet a
    # layer's weights while they are in the cache.
    above = jnp.maximum(row - 1, 0)
    caches = list(caches)
    for layer in range(model.num_outer_layers):
      step = functools.partial(outer_layer, layer, above, out.codes)
      caches[layer], contexts = _each(count, step, (caches[layer], contexts))
    contexts = jnp.where(row > 0, contexts, 0)
    rows = jax.lax.fori_loop(
      0,
      count,
      lambda i, rows: jax.tree.map(
        lambda a, x: a.at[i].set(x), rows, prepare_row(i, row, contexts)
      ),
      rows,
    )
    pixels, norms, noise = rows

    def each_pixel(column, carry):
      left, inner_caches, out = carry
      logits, inner_caches = call(
        'inner_step',
        table[left],
        jax.tree.map(lambda t: t[left], head_table),
        jax.tree.map(lambda p: p[:, column], pixels),
        norms,
        inner_caches,
        column,
      )
      codes = pick(logits, noise[:, column], temperature)
      log_probs = jnp.take_along_axis(
        jax.nn.log_softmax(logits), codes[:, None], axis=-1
      )[:, 0]
      drawn = Sample(codes, log_probs, logits if keep_logits else None)
      out = jax.tree.map(lambda o, d: o.at[:, row, column].set(d), out, drawn)
      return codes, inner_caches, out

    left = jnp.full((TILE,), none)
    _, inner_caches, out = jax.lax.fori_loop(
      0, width, each_pixel, (left, inner_caches, out)
    )
    return caches, contexts, rows, inner_caches, out

  contexts = jnp.zeros((TILE, width, z.shape[-1]), dtype)
  rows = zeros(
    jax.vmap(lambda i: prepare_row(i, 0, contexts)), jnp.arange(TILE)
  )
  shape = (TILE, heads, width, size)
  inner_caches = [
    (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    for _ in range(model.num_inner_layers)
  ]
  caches = [
    [outer_cache() for _ in range(TILE)] for _ in range(model.num_outer_layers)
  ]
  carry = (caches, contexts, rows, inner_caches, out)
  return jax.lax.fori_loop(0, height, each_row, carry)[-1]
