"""The autoregressive loop: a tile of pictures, row by row, pixel by pixel.

Axes: T pictures of a tile, H height, W width, D features, N heads, K features a
head, V symbols.

What depends on gray alone is computed once a picture, what depends on the rows
above once a row; the pixel loop only runs the inner decoder on one pixel, with
cached keys and values (design: paper section 3).

A result depends on picture, weights and key only. How floats are summed depends
on the shapes of the products and on the program around them, so every picture
meets the same program whatever the batch: pictures are sampled in tiles of
`TILE`. A tile's empty places are skipped where work is done picture by picture,
and computed in vain in the pixel loop, where four pictures cost what one does
(what takes time there is the weights' way from the cache).
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

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


def pick(logits, noise, temperature):
  """Returns int32 [...] codes drawn from logits [..., V] by the Gumbel trick.

  noise: standard Gumbel [..., V]. Temperature 0 takes the largest logit.
  """
  return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)


class State(flax.struct.PyTreeNode):
  """What goes from row to row.

  outer_caches: for each layer and picture keys and values [W, N, H, K]: apart,
  so that each is updated in place. conditions: what z says to the outer
  decoder's blocks, for the R rows of a block of rows, [T, R, W, ...]. contexts
  [T, W, D]: the outer decoder's word on the rows above. row: what `Tile.prepare_row` says of this row, [T, ...].
  inner_caches: for each layer keys and values [T, N, W, K].
  """

  outer_caches: list
  conditions: list
  contexts: jax.Array
  row: Any
  inner_caches: list
  out: Sample


@dataclasses.dataclass(frozen=True)
class Tile:
  """Samples T pictures, of which the first `count` are wanted.

  model, params: a colorizer. gray: int [T, H, W]. keys: [T]. count: int [].
  temperature: float []. exact: see `sampling.sample`'s modes.
  """

  model: Any
  params: Any
  gray: jax.Array
  keys: jax.Array
  count: jax.Array
  temperature: jax.Array
  exact: bool
  keep_logits: bool

  def call(self, method, *args):
    return self.model.apply({'params': self.params}, *args, method=method)

  def sample(self):
    """Returns the `Sample` [T, H, W]; the places from count on mean nothing."""
    once = self.once_a_picture()
    state = self.first_state(once)
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
    """Returns (z [T, H, W, D], the outer and the inner norms' conditions)."""

    def encode(i):
      z = self.call('encode', jax.lax.dynamic_index_in_dim(self.gray, i))
      return z[0], self.call('condition_norms', z)

    return self.for_each(encode, _zeros(encode))

  def for_each(self, function, stacked):
    """Returns `stacked` [T, ...] with function(i) for each wanted picture i."""

    def put(i, stacked):
      return jax.tree.map(lambda s, x: s.at[i].set(x), stacked, function(i))

    return jax.lax.fori_loop(0, self.count, put, stacked)

  def first_state(self, once):
    height, width = self.model.resolution
    table, heads = jax.eval_shape(lambda: self.call('symbol_table'))
    num_symbols, num_heads, size = heads['q'].shape

    def cache(*shape):
      return tuple(jnp.zeros((*shape, size), table.dtype) for _ in 'kv')

    contexts = jnp.zeros((TILE, width, table.shape[-1]), table.dtype)
    shape = (TILE, height, width)
    return State(
      outer_caches=[
        [cache(width, num_heads, height) for _ in range(TILE)]
        for _ in range(self.model.num_outer_layers)
      ],
      conditions=_zeros(lambda i: self.condition_rows(once, 0, i)),
      contexts=contexts,
      row=_zeros(lambda i: self.prepare_row(once, 0, contexts, i)),
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
    condition = functools.partial(self.condition_rows, once, first)
    state = state.replace(conditions=self.for_each(condition, state.conditions))
    return jax.lax.fori_loop(
      0,
      self.rows,
      functools.partial(self.sample_row, once, table, first),
      state,
    )

  def condition_rows(self, once, first, i):
    """Returns what z says to the outer decoder on `rows` rows of picture i."""
    z = jax.lax.dynamic_slice_in_dim(once[0][i], first, self.rows)
    return self.call('outer_condition', z)

  def sample_row(self, once, table, first, offset, state):
    """Returns the state after row first + offset is drawn."""
    row = first + offset
    prepare = functools.partial(self.prepare_row, once, row, state.contexts)
    state = state.replace(row=self.for_each(prepare, state.row))
    none = jnp.full((TILE,), len(table[0]) - 1)  # Left of the first pixel.
    _, state = jax.lax.fori_loop(
      0,
      self.model.resolution[1],
      functools.partial(self.sample_pixel, table, row),
      (none, state),
    )
    return self.run_outer_decoder(once, row, offset, state)

  def run_outer_decoder(self, once, row, offset, state):
    """Returns the state with the contexts of the row below a drawn row.

    Block by block: all pictures meet a block's weights while they are in the
    cache of the processor.
    """
    z, (norms, _) = once
    codes = state.out.codes
    contexts = self.for_each(
      lambda i: self.call('outer_inputs', codes[i, row], z[i, row], row),
      state.contexts,
    )
    outer_caches = []
    for layer, caches in enumerate(state.outer_caches):

      def picture(i, axis, layer=layer):
        condition = state.conditions[layer][axis]
        condition = jax.tree.map(lambda c: c[i, offset], condition)
        return condition, jax.tree.map(lambda n: n[i], norms[layer][axis])

      def row_block(i, layer=layer, contexts=contexts, picture=picture):
        step = functools.partial(self.call, 'outer_row_step', layer)
        return step(contexts[i], *picture(i, 0))

      def column_block(i, cache, contexts, layer=layer, picture=picture):
        step = functools.partial(self.call, 'outer_column_step', layer)
        x, cache = step(contexts[i], *picture(i, 1), cache, row)
        return cache, contexts.at[i].set(x)

      contexts = self.for_each(row_block, contexts)
      caches, contexts = self.for_each_apart(column_block, caches, contexts)
      outer_caches.append(caches)
    return state.replace(contexts=contexts, outer_caches=outer_caches)

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

  def prepare_row(self, once, row, contexts, i):
    """Returns (pixels, norms, noise) for the pixel loop, of picture i's row.

    pixels: see `InnerDecoder.row`. norms: [2D] each. noise: Gumbel [W, V].
    """
    z, (_, inner_norms) = once
    pixels = self.call('inner_row', contexts[i], z[i, row], row)
    if self.exact:
      norms = jax.tree.map(lambda n: n[i], inner_norms)
    else:
      norms = self.call('inner_norms', z[i, row][None, None])
    norms = jax.tree.map(lambda n: n.reshape(-1), norms)
    shape = (self.model.resolution[1], self.model.num_codes)
    noise = jax.random.gumbel(jax.random.fold_in(self.keys[i], row), shape)
    return pixels, norms, noise

  def sample_pixel(self, table, row, column, carry):
    """Returns (codes [T], state) after one pixel of each picture is drawn."""
    left, state = carry
    embeddings, heads = table
    pixels, norms, noise = state.row
    logits, inner_caches = self.call(
      'inner_step',
      embeddings[left],
      jax.tree.map(lambda h: h[left], heads),
      jax.tree.map(lambda p: p[:, column], pixels),
      norms,
      state.inner_caches,
      column,
    )
    codes = pick(logits, noise[:, column], self.temperature)
    log_probs = jnp.take_along_axis(
      jax.nn.log_softmax(logits), codes[:, None], axis=-1
    )[:, 0]
    drawn = Sample(codes, log_probs, logits if self.keep_logits else None)
    out = jax.tree.map(
      lambda o, d: o.at[:, row, column].set(d), state.out, drawn
    )
    return codes, state.replace(inner_caches=inner_caches, out=out)


def _zeros(function):
  """Returns zeros [T, ...] for what function(i) gives for one picture."""
  return jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(jax.vmap(function), jnp.arange(TILE)),
  )
