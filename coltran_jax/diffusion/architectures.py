"""From the config.json of a diffusers network to a module.

Each function takes the config and returns (module, shapes of the module's
inputs), from which `weights` knows every parameter. What these modules cannot
do is refused by name. A config says little where it was written long ago:
defaults are those of diffusers.
"""

import dataclasses

import jax
import jax.numpy as jnp

from coltran_jax.diffusion import controlnet, files, text_encoder, unet, vae

_USE = (
  'use a folder of Stable Diffusion 1 (such as '
  'stable-diffusion-v1-5/stable-diffusion-v1-5) or of 2-base '
  '(stabilityai/stable-diffusion-2-1-base), and a ControlNet made for it'
)
SDXL = f'Stable Diffusion XL is not supported; {_USE}'
# What the modules do whatever a config says, so it has to say the same.
_FIXED = {
  'act_fn': 'silu',
  'addition_embed_type': None,
  'attention_type': 'default',
  'center_input_sample': False,
  'class_embed_type': None,
  'controlnet_conditioning_channel_order': 'rgb',
  'cross_attention_norm': None,
  'downsample_padding': 1,
  'dual_cross_attention': False,
  'encoder_hid_dim_type': None,
  'global_pool_conditions': False,
  'latents_mean': None,
  'mid_block_add_attention': True,
  'mid_block_scale_factor': 1,
  'mid_block_type': 'UNetMidBlock2DCrossAttn',
  'num_class_embeds': None,
  'only_cross_attention': False,
  'resnet_out_scale_factor': 1,
  'resnet_skip_time_act': False,
  'resnet_time_scale_shift': 'default',
  'shift_factor': None,
  'time_cond_proj_dim': None,
  'time_embedding_type': 'positional',
  'timestep_post_act': None,
  'use_post_quant_conv': True,
  'use_quant_conv': True,
}
_DOWN = {'CrossAttnDownBlock2D': True, 'DownBlock2D': False}
_UP = {'CrossAttnUpBlock2D': True, 'UpBlock2D': False}
_SD1_DOWN = ('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',)


class _Config:
  """A config that checks what is asked of it; raises WeightsError."""

  def __init__(self, config):
    self._config = config
    for key, value in _FIXED.items():
      if config.get(key, value) != value:
        raise files.WeightsError(
          f'{key!r} is {config[key]!r}, but only {value!r} is supported; {_USE}'
        )

  def get(self, key, default):
    value = self._config.get(key)
    return default if value is None else value

  def whole(self, key, default, high=1 << 20):
    """A whole number, 1 to high: what is larger is no such network."""
    return self._checked(key, self.get(key, default), high)

  def wholes(self, key, default, count=None, high=1 << 20):
    """A tuple of them; one number stands for `count` of them."""
    value = self.get(key, default)
    if isinstance(value, int) and count:
      value = [value] * count
    if (
      not isinstance(value, (list, tuple))
      or not 1 <= len(value) <= 8
      or (count and len(value) != count)
    ):
      raise files.WeightsError(f'{key!r} is {value!r}')
    return tuple(self._checked(key, one, high) for one in value)

  def _checked(self, key, value, high):
    if type(value) is not int or not 1 <= value <= high:
      raise files.WeightsError(
        f'{key!r} is {value!r}, but must be a whole number, 1 to {high}'
      )
    return value

  def number(self, key, default):
    value = self.get(key, default)
    if type(value) not in (int, float) or not 0 <= value < 1e4:
      raise files.WeightsError(f'{key!r} is {value!r}, no number')
    return float(value)


def _architecture(config, attention, dtype):
  features = config.wholes('block_out_channels', (320, 640, 1280, 1280))
  # The latter is the *number* of heads, whatever it is called.
  key = 'num_attention_heads'
  if config.get(key, None) is None:
    key = 'attention_head_dim'
  kinds = config.get('down_block_types', _SD1_DOWN)
  if len(kinds) != len(features) or not all(one in _DOWN for one in kinds):
    raise files.WeightsError(f"'down_block_types' is {kinds!r}; {_USE}")
  heads = config.wholes(key, 8, count=len(features))
  groups = config.whole('norm_num_groups', 32)
  for width, count in zip(features, heads, strict=True):
    if width % count or width % groups:
      raise files.WeightsError(
        f"'block_out_channels' {width} is no multiple of {count} heads and "
        f'{groups} groups'
      )
  return unet.Architecture(
    features=features,
    heads=heads,
    attends=tuple(_DOWN[one] for one in kinds),
    depth=config.whole('layers_per_block', 2, 8),
    transformer_blocks=config.whole('transformer_layers_per_block', 1, 8),
    groups=groups,
    epsilon=config.number('norm_eps', 1e-5),
    linear_projection=bool(config.get('use_linear_projection', False)),
    cosine_first=bool(config.get('flip_sin_to_cos', True)),
    shift=int(config.number('freq_shift', 0)),
    attention=attention,
    dtype=dtype,
  )


def _floats(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _unet_inputs(config, architecture):
  text = config.whole('cross_attention_dim', 1280)
  if text == 2048:
    raise files.WeightsError(SDXL)
  channels = config.whole('in_channels', 4)
  if channels != config.whole('out_channels', 4):
    raise files.WeightsError(
      f"'in_channels' is {channels}: a network for inpainting or the like; "
      f'{_USE}'
    )
  side = architecture.multiple
  return (
    _floats(1, side, side, channels),
    jax.ShapeDtypeStruct((1,), jnp.int32),
    _floats(1, 1, text),
  )


def of_unet(config, attention='auto', dtype='float32'):
  """(UNet, shapes of latents, timesteps and context)."""
  if config.get('addition_embed_type') == 'text_time':
    raise files.WeightsError(SDXL)
  config = _Config(config)
  of = _architecture(config, attention, dtype)
  ups = config.get('up_block_types', None)
  if ups is not None and [_UP.get(one) for one in ups] != [*of.attends[::-1]]:
    raise files.WeightsError(f"'up_block_types' is {ups!r}; {_USE}")
  inputs = _unet_inputs(config, of)
  made = unet.UNet(
    of, config.whole('out_channels', 4), config.whole('sample_size', 64, 256)
  )
  return made, inputs


def of_controlnet(config, attention='auto', dtype='float32'):
  """(ControlNet, shapes of latents, timesteps, context and condition)."""
  if config.get('addition_embed_type') == 'text_time':
    raise files.WeightsError(SDXL)
  config = _Config(config)
  of = _architecture(config, attention, dtype)
  embedding = config.wholes(
    'conditioning_embedding_out_channels', (16, 32, 96, 256)
  )
  side = of.multiple * 2 ** (len(embedding) - 1)
  inputs = (
    *_unet_inputs(config, of),
    _floats(1, side, side, config.whole('conditioning_channels', 3)),
  )
  return controlnet.ControlNet(of, embedding), inputs


def of_vae(config, attention='auto', dtype='float32'):
  """(VAE, the shape of pictures)."""
  config = _Config(config)
  made = vae.VAE(
    features=config.wholes('block_out_channels', (64,)),
    depth=config.whole('layers_per_block', 1, 8),
    channels=config.whole('latent_channels', 4),
    groups=config.whole('norm_num_groups', 32),
    scaling=config.number('scaling_factor', 0.18215),
    attention=attention,
    dtype=dtype,
  )
  if any(width % made.groups for width in made.features) or not made.scaling:
    raise files.WeightsError(
      f"'block_out_channels' {made.features} must be multiples of "
      f"'norm_num_groups' {made.groups}, and 'scaling_factor' not 0"
    )
  return made, (_floats(1, made.multiple, made.multiple, 3),)


def of_text_encoder(config, attention='auto', dtype='float32'):
  """(TextEncoder, the shape of tokens)."""
  del attention  # Texts are short.
  config = _Config(config)
  made = text_encoder.TextEncoder(
    vocabulary=config.whole('vocab_size', 49408),
    features=config.whole('hidden_size', 512),
    hidden=config.whole('intermediate_size', 2048),
    depth=config.whole('num_hidden_layers', 12, 100),
    heads=config.whole('num_attention_heads', 8),
    length=config.whole('max_position_embeddings', 77, 1024),
    activation=config.get('hidden_act', 'quick_gelu'),
    epsilon=config.number('layer_norm_eps', 1e-5),
    dtype=dtype,
  )
  if made.activation not in text_encoder.ACTIVATIONS:
    raise files.WeightsError(f"'hidden_act' is {made.activation!r}")
  if made.features % made.heads:
    raise files.WeightsError(
      f"'hidden_size' {made.features} is no multiple of {made.heads} heads"
    )
  return made, (jax.ShapeDtypeStruct((1, made.length), jnp.int32),)


@dataclasses.dataclass(frozen=True)
class Kind:
  """A network: how its module is made, and the stem of its file of tensors."""

  build: object
  stem: str


KINDS = {
  'unet': Kind(of_unet, 'diffusion_pytorch_model'),
  'controlnet': Kind(of_controlnet, 'diffusion_pytorch_model'),
  'vae': Kind(of_vae, 'diffusion_pytorch_model'),
  'text_encoder': Kind(of_text_encoder, 'model'),
}
