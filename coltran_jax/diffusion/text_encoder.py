"""CLIP's text encoder, of Stable Diffusion 1 (ViT-L) and 2 (ViT-H).

Radford et al., 2021. Axes: B batch, T tokens, D features.
"""

import flax.linen as nn
import jax.numpy as jnp

from coltran_jax.diffusion import attention, layers

ACTIVATIONS = {
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
  'gelu': lambda x: nn.gelu(x, approximate=False),
}


class TextEncoder(nn.Module):
  """Encodes tokens; defaults are ViT-L's.

  activation: a key of `ACTIVATIONS`. length: the longest text, in tokens.
  """

  vocabulary: int = 49408
  features: int = 768
  hidden: int = 3072
  depth: int = 12
  heads: int = 12
  length: int = 77
  activation: str = 'quick_gelu'
  epsilon: float = 1e-5
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, tokens):
    """Returns float32 [B, T, D] of tokens int [B, T]; T at most `length`."""
    x = Embeddings(
      self.vocabulary, self.length, self.features, self.dtype, name='embeddings'
    )(tokens)
    x = Layers(
      self.depth,
      self.heads,
      self.hidden,
      self.activation,
      self.epsilon,
      self.dtype,
      name='encoder',
    )(x)
    x = layers.layer_norm('final_layer_norm', self.dtype, self.epsilon)(x)
    return x.astype(jnp.float32)


class Embeddings(nn.Module):
  """A learned vector for each token, and one for each place."""

  vocabulary: int
  length: int
  features: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, tokens):
    def table(size, name):
      return nn.Embed(size, self.features, dtype=self.dtype, name=name)

    places = jnp.arange(tokens.shape[1])[None]
    return table(self.vocabulary, 'token_embedding')(tokens) + table(
      self.length, 'position_embedding'
    )(places)


class Layers(nn.Module):
  """The transformer: [B, T, D], the same shape."""

  depth: int
  heads: int
  hidden: int
  activation: str
  epsilon: float
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    for i in range(self.depth):
      x = Layer(
        self.heads,
        self.hidden,
        self.activation,
        self.epsilon,
        self.dtype,
        name=f'layers_{i}',
      )(x)
    return x


class Layer(nn.Module):
  """Each token attends to those before it, then is changed alone."""

  heads: int
  hidden: int
  activation: str
  epsilon: float
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    y = layers.layer_norm('layer_norm1', self.dtype, self.epsilon)(x)
    x += CausalAttention(self.heads, self.dtype, name='self_attn')(y)
    y = layers.layer_norm('layer_norm2', self.dtype, self.epsilon)(x)
    return x + MLP(self.hidden, self.activation, self.dtype, name='mlp')(y)


class CausalAttention(nn.Module):
  """[B, T, D], the same shape."""

  heads: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    features = x.shape[-1]
    q, k, v = (
      nn.Dense(features, dtype=self.dtype, name=f'{name}_proj')(x).reshape(
        *x.shape[:2], self.heads, features // self.heads
      )
      for name in 'qkv'
    )
    y = attention.attend(q, k, v, causal=True).reshape(x.shape)
    return nn.Dense(features, dtype=self.dtype, name='out_proj')(y)


class MLP(nn.Module):
  """[B, T, D], the same shape."""

  hidden: int
  activation: str
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    y = nn.Dense(self.hidden, dtype=self.dtype, name='fc1')(x)
    y = ACTIVATIONS[self.activation](y)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name='fc2')(y)
