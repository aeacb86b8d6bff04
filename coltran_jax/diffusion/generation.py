"""One picture by Stable Diffusion and a ControlNet, and many of them.

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


def generate(
  networks, params, table, context, condition, noise, picture, guidance, scale
):
  """Returns a picture float32 [H, W, 3], 0..1, of one condition.

  Args:
    networks: `Networks`.
    params: {'unet', 'controlnet', 'vae': parameters}.
    table: of `schedulers.table`.
    context: [2, S, D], of the negative prompt and the prompt; or [1, S, D], of
      the prompt alone, which is then not held against another.
    condition: [H, W, 3] in 0..1; H and W are multiples of `networks.multiple`.
    noise: [h, w, C], normal.
    picture: [H, W, 3] in -1..1 to start from, or None to start from noise.
    guidance: how far to go from the negative prompt to the prompt and beyond.
    scale: of the ControlNet's residuals.
  """
  count = context.shape[0]

  def repeat(x):
    return jnp.broadcast_to(x[None], (count, *x.shape))

  condition = repeat(condition)

  def predict_noise(latents, timestep):
    inputs = (repeat(latents), repeat(timestep), context)
    residuals = networks.controlnet.apply(
      {'params': params['controlnet']}, *inputs, condition
    )
    residuals = [scale.astype(one.dtype) * one for one in residuals]
    made = networks.unet.apply({'params': params['unet']}, *inputs, residuals)
    return made[0] + guidance * (made[-1] - made[0])

  def autoencoder(x, method):
    of = {'params': params['vae']}
    return networks.vae.apply(of, x[None], method=method)

  latents = noise
  if picture is not None:
    mean, _ = autoencoder(picture, 'encode')
    alpha, sigma = table.scale[0]
    latents = alpha * networks.vae.scaling * mean[0] + sigma * noise
  latents = schedulers.run(table, predict_noise, latents)
  decoded = autoencoder(latents / networks.vae.scaling, 'decode')[0]
  return jnp.clip(decoded / 2 + 0.5, 0, 1)


def generate_from_gray(
  networks, params, table, context, gray, key, guidance, scale, from_photo
):
  """Returns `generate` of a gray picture uint8 [H, W] and a key.

  from_photo: whether to start from the picture itself.
  """
  edges = canny.canny(gray).astype(jnp.float32) / 255
  level = gray.astype(jnp.float32) / 127.5 - 1

  def rgb(x):
    return jnp.broadcast_to(x[..., None], (*x.shape, 3))

  height, width = (side // networks.vae.multiple for side in gray.shape)
  noise = jax.random.normal(key, (height, width, networks.vae.channels))
  picture = rgb(level) if from_photo else None
  return generate(
    networks,
    params,
    table,
    context,
    rgb(edges),
    noise,
    picture,
    guidance,
    scale,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def generate_batch(networks, mesh, from_photo, params, shared, gray, keys):
  """Returns pictures float32 [B, H, W, 3], 0..1, of gray ones and keys.

  Each device makes its own one after the other: the memory is that of one
  picture a device, and none depends on the others by as much as a rounding.

  Args:
    networks, from_photo, params: of `generate_from_gray`.
    mesh: of `sharding.make_mesh`; its devices divide B.
    shared: (table, context, guidance, scale) of all pictures.
    gray: uint8 [B, H, W].
    keys: [B].
  """

  def of_device(params, shared, gray, keys):
    table, context, guidance, scale = shared

    def one(inputs):
      return generate_from_gray(
        networks, params, table, context, *inputs, guidance, scale, from_photo
      )

    return jax.lax.map(one, (gray, keys))

  batch = sharding.of_batch(mesh).spec
  return jax.shard_map(
    of_device,
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec(), batch, batch),
    out_specs=batch,
    check_vma=False,
  )(params, shared, gray, keys)
