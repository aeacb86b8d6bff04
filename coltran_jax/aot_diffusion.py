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

  From photo to picture as `diffusion.pipeline.Pipeline.run` does it, all steps,
  without the text encoder, which is done before.

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
  shared = (
    table,
    shape((2, tokenizer.length, text.features)),
    shape(()),
    shape(()),
  )
  inputs = (
    {kind: weights_lib.shapes(one) for kind, one in found.items()},
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shared),
    jax.ShapeDtypeStruct((1, side, side), np.uint8),
    jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
  )
  inputs = sharding.shapes(inputs, sharding.replicated(mesh))
  traced = generation.generate_batch.trace(networks, mesh, True, *inputs)
  work = flops.of_jaxpr(traced.jaxpr.jaxpr)
  return aot.report('controlnet', traced, chip, 1, 1, work)
