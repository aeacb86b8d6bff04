"""Compiles Stable Diffusion and a ControlNet for a TPU that need not be there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import aot, flops, sharding, tpu_chips
from coltran_jax.diffusion import generation, parts, pipeline, schedulers
from coltran_jax.diffusion import weights as weights_lib


def compile_picture(
  weights, controlnet, topology, side, dtype='bfloat16', attention='chunked'
):
  """Returns the `aot.Report` of one picture by one device of a topology.

  From photo to picture as `diffusion.pipeline.Pipeline.run` does it, all steps
  in one program, without the text encoder, which is done before.

  Args:
    weights, controlnet, dtype, attention: as of `Pipeline.from_pretrained`;
      tensors are not read.
    topology: such as 'v5e:2x2'.
    side: of the picture in pixels.

  Raises:
    WeightsError: a folder is missing, wrong or not supported.
    ValueError: the topology's name or the side makes no sense.
    AotError: the compiler failed.
  """
  chip = tpu_chips.of_topology(topology)
  found = parts.find(weights, controlnet, dtype, attention)
  text = found.pop('text_encoder').module
  noise, tokenizer = parts.texts(weights, text)
  networks = generation.Networks(**{k: one.module for k, one in found.items()})
  if side < 1 or side % networks.multiple:
    raise ValueError(
      f'the side must be a multiple of {networks.multiple}, not {side}'
    )
  mesh = sharding.make_mesh(data=1, devices=aot.devices(topology)[:1])
  table = schedulers.table(noise, 'unipc', pipeline.STEPS, pipeline.STRENGTH)
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  inputs = (
    {kind: weights_lib.shapes(one) for kind, one in found.items()},
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), table),
    (shape((2, tokenizer.length, text.features)), shape(()), shape(())),
    jax.ShapeDtypeStruct((side, side), np.uint8),
    jax.eval_shape(lambda: jax.random.key(0)),
  )
  inputs = sharding.shapes(inputs, sharding.replicated(mesh))

  def picture(params, table, shared, gray, key):
    condition, carry = generation.begin(
      networks, True, params, table.scale[0], gray, key
    )
    return generation.generate(
      networks, params, table, shared, condition, carry[0]
    )

  traced = jax.jit(picture).trace(*inputs)
  work = flops.of_jaxpr(traced.jaxpr.jaxpr)
  return aot.report('controlnet', traced, chip, 1, 1, work)
