"""One picture by Stable Diffusion and a ControlNet, whole or step by step.

A picture is begun, advanced once a step and finished. Each is a program of its
own (`on_each_device`): out of a loop over all steps the CPU's compiler would
take float32 copies of all bfloat16 weights, twice their memory.

Axes: B batch, H, W of pictures, h, w of latents, C their channels, S tokens, D
features.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from coltran_jax import sharding
from coltran_jax.diffusion import (
  canny,
  controlnet,
  schedulers,
  unet,
  vae,
)

# Or all weights are made float32 before any is used: 4.90 GB of temporary
# memory at 256 px, not 0.15.
_CPU = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}


@dataclasses.dataclass(frozen=True)
class Networks:
  """The modules that work on pictures."""

  unet: unet.UNet
  controlnet: controlnet.ControlNet
  vae: vae.VAE

  @property
  def multiple(self):
    """What H and W must be multiples of."""
    return self.vae.multiple * self.unet.architecture.multiple


def begin(networks, from_photo, params, scale, gray, key):
  """Returns (condition [H, W, 3], what `advance` carries) of a gray picture.

  Args:
    networks: `Networks`.
    from_photo: whether to start from the picture, not from noise alone.
    params: {'unet', 'controlnet', 'vae': parameters}.
    scale: (alpha, sigma) of the first step.
    gray: uint8 [H, W]; both are multiples of `networks.multiple`.
    key: of the noise.
  """
  edges = canny.canny(gray).astype(jnp.float32) / 255
  level = gray.astype(jnp.float32) / 127.5 - 1

  def rgb(x):
    return jnp.broadcast_to(x[..., None], (*x.shape, 3))

  height, width = (side // networks.vae.multiple for side in gray.shape)
  latents = jax.random.normal(key, (height, width, networks.vae.channels))
  if from_photo:
    latents = noised(networks, params, scale, rgb(level), latents)
  return rgb(edges), schedulers.start(latents)


def noised(networks, params, scale, picture, noise):
  """Returns latents [h, w, C] of a picture [H, W, 3] in -1..1, and noise."""
  of = {'params': params['vae']}
  mean, _ = networks.vae.apply(of, picture[None], method='encode')
  alpha, sigma = scale
  return alpha * networks.vae.scaling * mean[0] + sigma * noise


def advance(networks, params, shared, row, condition, carry):
  """Returns carry after one step.

  Args:
    networks, params: as of `begin`.
    shared: (context, guidance, scale): [2, S, D], of the negative prompt and the
      prompt, or [1, S, D], of the prompt alone, which is then not held against
      another; how far to go from the one to the other and beyond; of the
      ControlNet's residuals.
    row, carry: of `schedulers.step`.
    condition: [H, W, 3] in 0..1.
  """
  return schedulers.step(
    row, _predict_noise(networks, params, shared, condition), carry
  )


def _predict_noise(networks, params, shared, condition):
  context, guidance, scale = shared
  count = context.shape[0]

  def repeat(x):
    return jnp.broadcast_to(x[None], (count, *x.shape))

  def predict_noise(latents, timestep):
    inputs = (repeat(latents), repeat(timestep), context)
    residuals = networks.controlnet.apply(
      {'params': params['controlnet']}, *inputs, repeat(condition)
    )
    residuals = [scale.astype(one.dtype) * one for one in residuals]
    made = networks.unet.apply({'params': params['unet']}, *inputs, residuals)
    return made[0] + guidance * (made[-1] - made[0])

  return predict_noise


def finish(networks, params, latents):
  """Returns a picture float32 [H, W, 3], 0..1, of clean latents."""
  decoded = networks.vae.apply(
    {'params': params['vae']},
    latents[None] / networks.vae.scaling,
    method='decode',
  )
  return jnp.clip(decoded[0] / 2 + 0.5, 0, 1)


def generate(networks, params, table, shared, condition, latents):
  """Returns a picture of noisy latents, all steps in one loop.

  table: of `schedulers.table`; the rest as above.
  """
  predict_noise = _predict_noise(networks, params, shared, condition)
  return finish(networks, params, schedulers.run(table, predict_noise, latents))


def on_each_device(part, static, mesh, shared, inputs):
  """Returns part(*static, *shared, *inputs) of one picture a device.

  None depends on the others by as much as a rounding.

  Args:
    part: `begin`, `advance` or `finish`.
    static: its first arguments, those without arrays.
    mesh: of `sharding.make_mesh`.
    shared: its next ones, the same for all pictures.
    inputs: the rest, each with as many pictures as devices.
  """

  platform = mesh.devices.flat[0].platform
  return program(platform)(part, static, mesh, shared, inputs)


@functools.cache
def program(platform):
  """Returns the jitted `on_each_device` for devices of a platform."""
  options = _CPU if platform == 'cpu' else None
  return jax.jit(
    _on_each_device, static_argnums=(0, 1, 2), compiler_options=options
  )


def _on_each_device(part, static, mesh, shared, inputs):
  def of_device(shared, inputs):
    own = jax.tree.map(lambda x: x[0], inputs)
    made = part(*static, *shared, *own)
    return jax.tree.map(lambda x: x[None], made)

  batch = sharding.of_batch(mesh).spec
  return jax.shard_map(
    of_device,
    mesh=mesh,
    in_specs=(PartitionSpec(), batch),
    out_specs=batch,
    check_vma=False,
  )(shared, inputs)
