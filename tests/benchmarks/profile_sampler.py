"""Where the sampler's time goes: `python tests/benchmarks/profile_sampler.py`.

Each part of sampling one picture at paper size, alone and compiled: its
milliseconds, the operations of its matrix products, and the rate that makes;
and the rate of large plain products, which is what this machine can do. One
JSON object a line.
"""

import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import speed

from coltran_jax import sampling_tile

RUNS = 5
SQUARE = 2 * 512 * 512 / 1e9  # GFLOP of one vector through a 512x512 matrix.
PIXELS = 64 * 64


def main():
  model, params = speed.build('colorizer')
  model = model.clone(encoder_chunk=16)
  params = jax.device_put(params)
  gray = np.random.RandomState(1).randint(0, 256, (1, 64, 64))

  def call(method, *args):
    return model.apply({'params': params}, *args, method=method)

  z = report('encoder', 48 * SQUARE * PIXELS, lambda g: call('encode', g), gray)
  norms, inner_norms = call('condition_norms', z)
  cache = [(jnp.zeros((64, 4, 64, 128)),) * 2 for _ in range(2)]

  def outer_decoder(z):
    def row(conditions, first, offset, carry):
      caches, total = carry
      index = first + offset
      x = call('outer_inputs', jnp.zeros(64, jnp.int32), z[index], index)
      updated = []
      for layer in range(2):
        here = jax.tree.map(lambda c: c[offset], conditions[layer])
        step = functools.partial(call, 'outer_row_step', layer)
        x = step(x, here[0], norms[layer][0])
        step = functools.partial(call, 'outer_column_step', layer)
        x, c = step(x, here[1], norms[layer][1], caches[layer], index)
        updated.append(c)
      return updated, total + x

    def rows(block, carry):
      first = block * sampling_tile.ROWS
      part = jax.lax.dynamic_slice_in_dim(z, first, sampling_tile.ROWS)
      step = functools.partial(row, call('outer_condition', part), first)
      return jax.lax.fori_loop(0, sampling_tile.ROWS, step, carry)

    start = cache, jnp.zeros((64, 512))
    return jax.lax.fori_loop(0, 64 // sampling_tile.ROWS, rows, start)[1]

  report('outer decoder, 64 rows', 56 * SQUARE * PIXELS, outer_decoder, z[0])

  def inner_rows(z):
    def row(index, total):
      made = call('inner_row', total, z[index], index)
      return total + 1e-9 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(made))

    return jax.lax.fori_loop(0, 64, row, jnp.zeros((64, 512)))

  report('inner decoder, 64 rows', 35 * SQUARE * PIXELS, inner_rows, z[0])
  ready = jax.tree.map(
    lambda x: jnp.stack([x] * sampling_tile.TILE),
    call('inner_row', z[0, 0], z[0, 0], 0),
  )
  flat = jax.tree.map(
    lambda n: jnp.stack([n.reshape(-1)] * sampling_tile.TILE), inner_norms
  )
  report(
    f'inner decoder, 4096 pixels of {sampling_tile.TILE} pictures',
    10 * SQUARE * PIXELS * sampling_tile.TILE,
    functools.partial(pixels, call),
    ready,
    flat,
  )
  for rows in (64, 4096):
    x, w = jnp.ones((rows, 512)), jnp.full((512, 512), 1e-3)
    count = 4096 // rows * 16
    report(
      f'plain products of [{rows}, 512] and [512, 512]',
      SQUARE * rows * count,
      lambda x, w, n=count: jax.lax.fori_loop(0, n, lambda _, y: y @ w, x),
      x,
      w,
    )


def pixels(call, ready, norms):
  tile = sampling_tile.TILE
  table, heads = call('symbol_table')
  caches = [(jnp.zeros((tile, 4, 64, 128)),) * 2 for _ in range(2)]

  def pixel(i, carry):
    left, caches = carry
    column = i % 64
    logits, caches = call(
      'inner_step',
      table[left],
      jax.tree.map(lambda h: h[left], heads),
      jax.tree.map(lambda p: p[:, column], ready),
      norms,
      caches,
      column,
    )
    return sampling_tile.pick(logits, 0.0, 1.0), caches

  start = jnp.zeros(tile, jnp.int32), caches
  return jax.lax.fori_loop(0, PIXELS, pixel, start)[0]


def report(name, gflop, function, *args):
  """Returns function(*args), after printing its best time of RUNS."""
  compiled = jax.jit(function)
  result = jax.block_until_ready(compiled(*args))
  seconds = []
  for _ in range(RUNS):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    seconds.append(time.perf_counter() - start)
  best = min(seconds)
  line = {
    'part': name,
    'ms': round(1e3 * best, 1),
    'gflop': round(gflop, 1),
    'gflop_a_second': round(gflop / best),
  }
  print(json.dumps(line), flush=True)
  return result


if __name__ == '__main__':
  main()
