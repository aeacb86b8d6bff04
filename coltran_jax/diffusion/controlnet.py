"""ControlNet: a copy of the UNet's first half that sees a picture.

Zhang et al., 2023. Axes: B batch, H, W of pictures, h, w of latents.
"""

import flax.linen as nn

from coltran_jax.diffusion import layers, unet


class ControlNet(nn.Module):
  """Makes what a `unet.UNet` adds to its skips and to its middle.

  embedding: features of the layers that shrink the picture, all but the first
  of stride 2.
  """

  architecture: unet.Architecture = unet.Architecture()
  embedding: tuple[int, ...] = (16, 32, 96, 256)

  @nn.compact
  def __call__(self, latents, timesteps, context, condition):
    """Returns a list of residuals, from fine to coarse, that of the middle last.

    Args:
      latents, timesteps, context: as the UNet's.
      condition: [B, H, W, 3] in 0..1, such as edges; H and W are 8 h and 8 w.
    """
    of = self.architecture
    x = layers.conv(of.features[0], 3, 'conv_in', of.dtype)(latents)
    x += ConditionEmbedding(
      self.embedding,
      of.features[0],
      of.dtype,
      name='controlnet_cond_embedding',
    )(condition)
    _, skips, middle = unet.descend(of, x, timesteps, context)
    names = [f'controlnet_down_blocks_{i}' for i in range(len(skips))]
    return [
      layers.conv(one.shape[-1], 1, name, of.dtype)(one)
      for name, one in zip(
        [*names, 'controlnet_mid_block'], [*skips, middle], strict=True
      )
    ]


class ConditionEmbedding(nn.Module):
  """[B, H, W, 3] -> [B, H/8, W/8, out]."""

  features: tuple[int, ...]
  out: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    x = nn.silu(layers.conv(self.features[0], 3, 'conv_in', self.dtype)(x))
    for i, features in enumerate(self.features[1:]):
      for j, (width, stride) in enumerate([(x.shape[-1], 1), (features, 2)]):
        name = f'blocks_{2 * i + j}'
        x = nn.silu(layers.conv(width, 3, name, self.dtype, stride)(x))
    return layers.conv(self.out, 3, 'conv_out', self.dtype)(x)
