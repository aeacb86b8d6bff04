"""The UNet of Stable Diffusion 1 and 2, and the half that a ControlNet shares.

`Ho et al., 2020`, `Rombach et al., 2022`. Axes: B batch, h, w height and width of
latents, C their channels, D features, S tokens.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from coltran_jax.diffusion import layers


@dataclasses.dataclass(frozen=True)
class Architecture:
  """What UNet and ControlNet have in common.

  Attributes, with one entry a level from fine to coarse:
    features: of the level.
    heads: of its attention.
    attends: whether it has any.
  and of all levels:
    depth: residual blocks on the way down; one more on the way up.
    transformer_blocks: in each transformer.
    groups, epsilon: of group norms.
    linear_projection: see `layers.Transformer`.
    cosine_first, shift: see `layers.TimeEmbedding`.
    attention: see `attention.attend`.
    dtype: of the products; statistics and softmax are float32.
  """

  features: tuple[int, ...] = (320, 640, 1280, 1280)
  heads: tuple[int, ...] = (8, 8, 8, 8)
  attends: tuple[bool, ...] = (True, True, True, False)
  depth: int = 2
  transformer_blocks: int = 1
  groups: int = 32
  epsilon: float = 1e-5
  linear_projection: bool = False
  cosine_first: bool = True
  shift: int = 0
  attention: str = 'auto'
  dtype: str = 'float32'

  @property
  def multiple(self):
    """What h and w must be multiples of."""
    return 2 ** (len(self.features) - 1)

  def resnet(self, level, name):
    return layers.Resnet(
      self.features[level], self.groups, self.epsilon, self.dtype, name=name
    )

  def transformer(self, level, name):
    return layers.Transformer(
      self.heads[level],
      self.groups,
      self.transformer_blocks,
      self.linear_projection,
      self.attention,
      self.dtype,
      name=name,
    )


class UNet(nn.Module):
  """Predicts the noise in latents.

  out_channels: C. sample_size: h and w of the latents that it was trained on.
  """

  architecture: Architecture = Architecture()
  out_channels: int = 4
  sample_size: int = 64

  @nn.compact
  def __call__(self, latents, timesteps, context, residuals=None):
    """Returns the noise, float32 [B, h, w, C].

    Args:
      latents: [B, h, w, C]; h and w are multiples of `architecture.multiple`.
      timesteps: [B], 0 .. 999.
      context: [B, S, D], of the text encoder.
      residuals: what a `ControlNet` gave, or None.
    """
    of = self.architecture
    x = layers.conv(of.features[0], 3, 'conv_in', of.dtype)(latents)
    time, skips, x = descend(of, x, timesteps, context)
    if residuals is not None:
      *added, middle = residuals
      skips = [skip + one for skip, one in zip(skips, added, strict=True)]
      x += middle
    for i, level in enumerate(reversed(range(len(of.features)))):
      count = of.depth + 1
      x = UpBlock(of, level, name=f'up_blocks_{i}')(
        x, skips[-count:], time, context
      )
      del skips[-count:]
    x = layers.group_norm(of.groups, of.epsilon, 'conv_norm_out', of.dtype)(x)
    x = layers.conv(self.out_channels, 3, 'conv_out', of.dtype)(nn.silu(x))
    return x.astype(jnp.float32)


def descend(architecture, x, timesteps, context):
  """Returns (time embedding, skips from fine to coarse, the coarsest [B, ..]).

  For use in a compact module: the layers become its own.
  """
  of = architecture
  time = layers.TimeEmbedding(
    of.features[0], of.cosine_first, of.shift, of.dtype, name='time_embedding'
  )(timesteps)
  skips = [x]
  for level in range(len(of.features)):
    block = DownBlock(of, level, name=f'down_blocks_{level}')
    x, made = block(x, time, context)
    skips += made
  return time, skips, MiddleBlock(of, name='mid_block')(x, time, context)


class DownBlock(nn.Module):
  """One level on the way down: ([B, h/2, w/2, D], all that it made)."""

  architecture: Architecture
  level: int

  @nn.compact
  def __call__(self, x, time, context):
    of, made = self.architecture, []
    for i in range(of.depth):
      x = of.resnet(self.level, f'resnets_{i}')(x, time)
      if of.attends[self.level]:
        x = of.transformer(self.level, f'attentions_{i}')(x, context)
      made.append(x)
    if self.level < len(of.features) - 1:
      x = layers.Downsample(dtype=of.dtype, name='downsamplers_0')(x)
      made.append(x)
    return x, made


class MiddleBlock(nn.Module):
  """The coarsest level: [B, h, w, D], the same shape."""

  architecture: Architecture

  @nn.compact
  def __call__(self, x, time, context):
    of = self.architecture
    x = of.resnet(-1, 'resnets_0')(x, time)
    x = of.transformer(-1, 'attentions_0')(x, context)
    return of.resnet(-1, 'resnets_1')(x, time)


class UpBlock(nn.Module):
  """One level on the way up: [B, 2h, 2w, D]; the finest keeps its size.

  skips: what the level made on the way down, and what came into it.
  """

  architecture: Architecture
  level: int

  @nn.compact
  def __call__(self, x, skips, time, context):
    of = self.architecture
    for i, skip in enumerate(reversed(skips)):
      x = jnp.concatenate([x, skip], axis=-1)
      x = of.resnet(self.level, f'resnets_{i}')(x, time)
      if of.attends[self.level]:
        x = of.transformer(self.level, f'attentions_{i}')(x, context)
    if self.level > 0:
      x = layers.Upsample(of.dtype, name='upsamplers_0')(x)
    return x
