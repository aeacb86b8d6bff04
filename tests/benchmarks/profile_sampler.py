"""Where the sampler's time goes: `python tests/benchmarks/profile_sampler.py`.

Each part of sampling a full tile at paper size, alone and compiled, a picture:
milliseconds, the operations of its matrix products, the rate that makes, and
its floor: what plain products of as many rows take in the same run on this
machine. Part and floor are timed in turn, so that a busy machine slows both.
One JSON object a line.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import speed

from coltran_jax import sampling_tile

SQUARE = 2 * 512 * 512 / 1e9  # GFLOP of one vector through a 512x512 matrix.
SIDE = 64
TILE = sampling_tile.TILE


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--runs', type=int, default=3)
  args = parser.parse_args()
  model, params = speed.build('colorizer')
  model = model.clone(encoder_chunk=16)
  random = np.random.RandomState(1)
  gray = random.randint(0, 256, (TILE, SIDE, SIDE))
  keys = jax.random.split(jax.random.key(0), TILE)

  def tile(params):
    return sampling_tile.Tile(
      model=model,
      params=params,
      gray=jnp.asarray(gray),
      keys=keys,
      count=jnp.int32(TILE),
      temperature=jnp.float32(1),
      min_p=jnp.float32(0),
      exact=True,
      keep_logits=False,
    )

  def part(name, squares, rows, function, *given):
    compiled = jax.jit(lambda params, *g: function(tile(params), *g))
    return report(name, squares, rows, args, compiled, params, *given)

  params = jax.device_put(params)
  once = part('encoder', 48, 16 * SIDE, sampling_tile.Tile.once_a_picture)
  part('outer decoder', 56, TILE * SIDE, outer_decoder, once)
  prepared = part('inner decoder, rows', 35, TILE * SIDE, inner_rows, once)
  part('inner decoder, pixels', 10, TILE, inner_pixels, prepared)


def outer_decoder(tile, once):
  def rows(block, state):
    first = block * tile.rows
    conditions = tile.condition_rows(once, first)

    def row(offset, state):
      index = first + offset
      return tile.run_outer_decoder(once, conditions, index, offset, state)

    return jax.lax.fori_loop(0, tile.rows, row, state)

  blocks = SIDE // tile.rows
  return jax.lax.fori_loop(0, blocks, rows, tile.first_state()).contexts


def inner_rows(tile, once):
  contexts = tile.first_state().contexts
  shapes = jax.eval_shape(lambda: tile.prepare_row(once, 0, contexts))
  return jax.lax.fori_loop(
    0,
    SIDE,
    lambda row, _: tile.prepare_row(once, row, contexts),
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
  )


def inner_pixels(tile, prepared):
  table = tile.call('symbol_table')

  def pixel(i, carry):
    return tile.sample_pixel(table, prepared, i // SIDE, i % SIDE, carry)

  none = jnp.full((len(tile.gray),), len(table[0]) - 1)
  return jax.lax.fori_loop(0, SIDE**2, pixel, (none, tile.first_state()))[0]


def report(name, squares, rows, args, function, *given):
  """Returns function(*given), after printing its best time and its floor's."""
  gflop = squares * SQUARE * SIDE**2
  count = max(1, 65536 // rows)
  plain = jax.jit(
    lambda x, w: jax.lax.fori_loop(0, count, lambda _, y: y @ w, x)
  )
  matrix = jnp.ones((rows, 512)), jnp.full((512, 512), 1 / 512)
  seconds, floors = [], []
  for _ in range(args.runs + 1):  # The first compiles.
    result, taken = timed(function, *given)
    seconds.append(taken / TILE)
    taken = min(timed(plain, *matrix)[1] for _ in range(5))
    floors.append(taken * gflop / (SQUARE * rows * count))
  best, floor = min(seconds[1:]), min(floors[1:])
  line = {
    'part': name,
    'ms': round(1e3 * best, 1),
    'gflop': round(gflop, 1),
    'gflop_a_second': round(gflop / best),
    'floor_ms': round(1e3 * floor, 1),
    'floor': f'products of [{rows}, 512] and [512, 512]',
    'floor_gflop_a_second': round(gflop / floor),
  }
  print(json.dumps(line), flush=True)
  return result


def timed(function, *given):
  """Returns (function(*given), seconds)."""
  start = time.perf_counter()
  result = jax.block_until_ready(function(*given))
  return result, time.perf_counter() - start


if __name__ == '__main__':
  main()
