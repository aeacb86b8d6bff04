"""The autoregressive loop: a tile of pictures, row by row, pixel by pixel.

Axes: T pictures of a tile, H height, W width, D features, N heads, K features a
head, V symbols.

What depends on gray alone is computed once a picture, what depends on the rows
above once a row; the pixel loop only runs the inner decoder on one pixel, with
cached keys and values (design: paper section 3).

A result depends on picture, weights and key only. How floats are summed depends
on the shapes of the products: at paper size XLA sums products of 2 to 32 rows
in one order, of 40 and more in another. So the 64 pixels of a row may go
through a product alone or with those of a whole tile, and pictures are sampled
in tiles of `TILE` by one program, whatever the batch. A tile's empty places are
computed in vain in the pixel loop, where four pictures cost what one does (what
takes time there is the weights' way from the cache), and skipped elsewhere.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from coltran_jax import encoder_guidance

TILE = 4
ROWS = 4


class Sample(flax.struct.PyTreeNode):
  """codes int32 [B, H, W] 0..511, log_probs float32 [B, H, W] (nats, <= 0).

  log_probs: of each drawn code under the model, at temperature 1. logits
  float32 [B, H, W, 512] if asked for, else None.
  """

  codes: jax.Array
  log_probs: jax.Array
  logits: jax.Array | None = None


def pick(logits, noise, temperature, min_p):
  """Returns int32 [...] codes drawn from logits [..., V] by the Gumbel trick.

  noise: standard Gumbel [..., V]. Temperature 0 takes the largest logit. min_p:
  codes less probable than this share of the most probable one are not drawn.
  """
  floor = logits.max(axis=-1, keepdims=True) + jnp.log(min_p)
  kept = jnp.where(logits < floor, -jnp.inf, logits)
  return jnp.argmax(kept + temperature * noise, axis=-1).astype(jnp.int32)


class State(flax.struct.PyTreeNode):
  """What goes from row to row.

  outer_caches: for each layer and picture keys and values [W, N, H, K]: apart,
  so that each is updated in place. contexts [T, W, D]: the outer decoder's word
  on the rows above. inner_caches: for each layer keys and values [T, N, W, K].
  """

  outer_caches: list
  contexts: jax.Array
  inner_caches: list
  out: Sample


@dataclasses.dataclass(frozen=True)
class Tile:
  """Samples T pictures, of which the first `count` are wanted.

  model, params: a colorizer. gray: int [T, H, W]. keys: [T]. count: int [].
  temperature, min_p: float []. encoder_weight, vividness: float [], or None for
  nothing. exact: see `sampling.sample`'s modes. prior: float [T, H, W, V], added to
  the logits before a code is picked, or None.
  """

  model: Any
  params: Any
  gray: jax.Array
  keys: jax.Array
  count: jax.Array
  temperature: jax.Array
  min_p: jax.Array
  encoder_weight: jax.Array | None
  vividness: jax.Array | None
  exact: bool
  keep_logits: bool
  prior: jax.Array | None = None

  def call(self, method, *args):
    return self.model.apply({'params': self.params}, *args, method=method)

  def sample(self):
    """Returns the `Sample` [T, H, W]; the places from count on mean nothing."""
    once = self.once_a_picture()
    state = self.first_state()
    table = self.call('symbol_table')
    return jax.lax.fori_loop(
      0,
      self.model.resolution[0] // self.rows,
      functools.partial(self.sample_rows, once, table),
      state,
    ).out

  @property
  def rows(self):
    """Rows whose conditions are computed at a time: a divisor of H.

    One row makes products so small that they wait for the weights.
    """
    height = self.model.resolution[0]
    return max(n for n in range(1, ROWS + 1) if height % n == 0)

  def once_a_picture(self):
    """Returns (z [T, H, W, D], the outer and the inner norms' conditions, prior).

    prior: [T, H, W, V], added to the logits before a code is picked, or None.
    """
    weights = self.encoder_weight, self.vividness

    def encode(gray):
      z = self.call('encode', gray[None])
      prior = None
      if any(weight is not None for weight in weights):
        coarse = self.model.coarse_gray(gray[None])
        expected = None if weights[0] is None else self.call('parallel', z)
        prior = encoder_guidance.prior(coarse, expected, *weights)[0]
      return z[0], self.call('condition_norms', z), prior

    z, conditions, prior = self.for_each(encode, self.gray, together=False)
    if self.prior is not None:
      prior = self.prior if prior is None else prior + self.prior
    return z, conditions, prior

  def for_each(self, function, *inputs, together=True):
    """Returns [T, ...], function(*inputs) of each wanted picture.

    inputs: [T, ...]. With `together` a full tile takes one product where
    pictures take one each: a row of one picture is too small for the speed of a
    processor. Both give the same bits.
    """
    each = jax.vmap(function)
    single = jax.jit(each)

    def put(i, out):
      part = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1), inputs
      )
      return jax.tree.map(
        lambda o, x: jax.lax.dynamic_update_slice_in_dim(o, x, i, 0),
        out,
        single(*part),
      )

    def one_by_one():
      one = jax.tree.map(lambda x: x[:1], inputs)
      shapes = jax.eval_shape(single, *one)  # Traced once, for `put` as well.
      out = jax.tree.map(
        lambda x: jnp.zeros((TILE, *x.shape[1:]), x.dtype), shapes
      )
      return jax.lax.fori_loop(0, self.count, put, out)

    if not together:
      return one_by_one()
    return jax.lax.cond(self.count == TILE, lambda: each(*inputs), one_by_one)

  def first_state(self):
    height, width = self.model.resolution
    table, heads = jax.eval_shape(lambda: self.call('symbol_table'))
    num_symbols, num_heads, size = heads['q'].shape

    def cache(*shape):
      return tuple(jnp.zeros((*shape, size), table.dtype) for _ in 'kv')

    shape = (TILE, height, width)
    return State(
      outer_caches=[
        [cache(width, num_heads, height) for _ in range(TILE)]
        for _ in range(self.model.num_outer_layers)
      ],
      contexts=jnp.zeros((TILE, width, table.shape[-1]), table.dtype),
      inner_caches=[
        cache(TILE, num_heads, width)
        for _ in range(self.model.num_inner_layers)
      ],
      out=Sample(
        codes=jnp.zeros(shape, jnp.int32),
        log_probs=jnp.zeros(shape),
        logits=jnp.zeros((*shape, num_symbols - 1))
        if self.keep_logits
        else None,
      ),
    )

  def sample_rows(self, once, table, block, state):
    """Returns the state after a block of `rows` rows is drawn."""
    first = block * self.rows
    conditions = self.condition_rows(once, first)
    return jax.lax.fori_loop(
      0,
      self.rows,
      functools.partial(self.sample_row, once, table, conditions, first),
      state,
    )

  def condition_rows(self, once, first):
    """Returns what z says to the outer decoder on `rows` rows, [T, R, W, ...]."""

    def condition(z):
      z = jax.lax.dynamic_slice_in_dim(z, first, self.rows)
      return self.call('outer_condition', z)

    return self.for_each(condition, once[0], together=False)

  def sample_row(self, once, table, conditions, first, offset, state):
    """Returns the state after row first + offset is drawn."""
    row = first + offset
    none = jnp.full((TILE,), len(table[0]) - 1)  # Left of the first pixel.
    prepared = self.prepare_row(once, row, state.contexts)
    _, state = jax.lax.fori_loop(
      0,
      self.model.resolution[1],
      functools.partial(self.sample_pixel, table, prepared, row),
      (none, state),
    )
    return self.run_outer_decoder(once, conditions, row, offset, state)

  def run_outer_decoder(self, once, conditions, row, offset, state):
    """Returns the state with the contexts of the row below a drawn row.

    Block by block: all pictures meet a block's weights while they are in the
    cache of the processor.
    """
    z, (norms, _), _ = once

    def here(conditions):
      return jax.tree.map(lambda c: c[offset], conditions)

    def inputs(codes, z):
      return self.call('outer_inputs', codes[row], z[row], row)

    x = self.for_each(inputs, state.out.codes, z)
    outer_caches = []
    for layer, caches in enumerate(state.outer_caches):

      def row_step(x, conditions, norms, layer=layer):
        step = functools.partial(self.call, 'outer_row_step', layer)
        return step(x, here(conditions), norms)

      x, heads = self.for_each(row_step, x, conditions[layer], norms[layer])

      def column_step(i, cache, values, layer=layer, heads=heads):
        own = jax.tree.map(lambda h: h[i], heads)
        made, cache = self.call('outer_column_step', layer, own, cache, row)
        return cache, values.at[i].set(made)

      caches, values = self.for_each_apart(
        column_step, caches, jnp.zeros_like(heads['q'])
      )

      def finish_step(x, values, conditions, norms, layer=layer):
        step = functools.partial(self.call, 'outer_finish_step', layer)
        return step(x, values, here(conditions), norms)

      x = self.for_each(finish_step, x, values, conditions[layer], norms[layer])
      outer_caches.append(caches)
    return state.replace(contexts=x, outer_caches=outer_caches)

  def for_each_apart(self, function, owns, shared):
    """Returns (owns, shared) after function(i, owns[i], shared) -> the same.

    Every picture has a loop of its own that runs once or not at all, so that
    its big arrays are updated in place. That the index comes from the loop
    makes these loops the same program, and all places give the same bits.
    """
    updated = []
    for place, own in enumerate(owns):
      own, shared = jax.lax.fori_loop(
        place,
        jnp.minimum(self.count, place + 1),
        lambda i, carry: function(i, *carry),
        (own, shared),
      )
      updated.append(own)
    return updated, shared

  def prepare_row(self, once, row, contexts):
    """Returns (pixels, norms, prior, noise), [T, ...] each, for the pixel loop.

    pixels: see `InnerDecoder.row`. norms: [2D] each. prior: [W, V] or None.
    noise: Gumbel [W, V].
    """
    z, (_, norms), prior = once
    shape = (self.model.resolution[1], self.model.num_codes)

    def pixels(context, z):
      return self.call('inner_row', context, z[row], row)

    def row_norms(z):
      return self.call('inner_norms', z[row][None, None])

    def noise(key):
      return jax.random.gumbel(jax.random.fold_in(key, row), shape)

    if not self.exact:
      norms = self.for_each(row_norms, z)
    norms = jax.tree.map(lambda n: n.reshape(len(n), -1), norms)
    # Not every kind of key gives a group of pictures what it gives each alone.
    return (
      self.for_each(pixels, contexts, z),
      norms,
      None if prior is None else prior[:, row],
      self.for_each(noise, self.keys, together=False),
    )

  def sample_pixel(self, table, prepared, row, column, carry):
    """Returns (codes [T], state) after one pixel of each picture is drawn."""
    left, state = carry
    embeddings, heads = table
    pixels, norms, prior, noise = prepared
    logits, inner_caches = self.call(
      'inner_step',
      embeddings[left],
      jax.tree.map(lambda h: h[left], heads),
      jax.tree.map(lambda p: p[:, column], pixels),
      norms,
      state.inner_caches,
      column,
    )
    wanted = logits
    if prior is not None:
      wanted = logits + prior[:, column]
    codes = pick(wanted, noise[:, column], self.temperature, self.min_p)
    log_probs = jnp.take_along_axis(
      jax.nn.log_softmax(logits), codes[:, None], axis=-1
    )[:, 0]
    drawn = Sample(codes, log_probs, logits if self.keep_logits else None)
    out = jax.tree.map(
      lambda o, d: o.at[:, row, column].set(d), state.out, drawn
    )
    return codes, state.replace(inner_caches=inner_caches, out=out)
