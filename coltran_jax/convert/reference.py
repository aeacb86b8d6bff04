"""From the reference's variables and configs to our models and parameters."""

import re

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from coltran_jax import models
from coltran_jax.convert import names

STAGES = {
  'col_tran_core': 'colorizer',
  'color_upsampler': 'color_upsampler',
  'spatial_upsampler': 'spatial_upsampler',
}


class ConversionError(ValueError):
  """The variables are not those of a ColTran model; says which and why."""


def load_variables(stage, variables, config=None):
  """Returns (model, params) of the reference's variables of one stage.

  Args:
    stage: 'colorizer', 'color_upsampler' or 'spatial_upsampler'.
    variables: {reference name: array}, as in 'col_tran_core/dense/kernel:0'.
    config: the reference's config as a dict; None infers the sizes and switches
      from names and shapes. What leaves no trace there (order of conditional
      layer norm, activations, skip) is then as published.

  Raises:
    ConversionError: missing, extra or misshapen variables, each listed.
  """
  shapes = {name: tuple(np.shape(value)) for name, value in variables.items()}
  model = model_for(stage, shapes, config)
  paths = check(stage, model, shapes)
  return model, to_params(paths, variables)


def to_params(paths, variables):
  """Returns the parameters of variables; paths: as `check` gives them."""
  flat = {
    path: jnp.asarray(variables[name], jnp.float32)
    for name, path in paths.items()
  }
  return flax.traverse_util.unflatten_dict(flat)


def model_for(stage, shapes, config=None):
  """Returns the model of a stage; `shapes`: {reference name: shape}."""
  if stage not in models.MODELS:
    raise ConversionError(
      f'unknown stage {stage!r}; there are {", ".join(STAGES.values())}'
    )
  try:
    if stage == 'colorizer':
      infer, read = _infer_colorizer, _read_colorizer
    else:
      infer, read = _infer_upsampler, _read_upsampler
    arguments = infer(stage, shapes)
  except KeyError as error:
    raise ConversionError(
      f'variable {error.args[0]!r} is missing: this is not a {stage}, or not '
      'all of one'
    ) from None
  try:
    if config is not None:
      arguments |= read(config.get('model', config))
    return models.build(stage, arguments)
  except KeyError as error:
    raise ConversionError(f'the config has no {error.args[0]!r}') from None
  except ValueError as error:
    raise ConversionError(f'{stage}: {error}') from None


def check(stage, model, shapes):
  """Returns {reference name: parameter path} if `shapes` fit model exactly."""
  paths = names.reference_names(stage, model)
  try:
    expected = models.parameter_shapes(model)
  except (ValueError, ZeroDivisionError) as error:
    raise ConversionError(f'{stage}: {error}') from None
  problems = [f'missing: {name}' for name in paths if name not in shapes]
  problems += [f'unknown: {name}' for name in shapes if name not in paths]
  for name, path in paths.items():
    if name in shapes and tuple(shapes[name]) != expected[path]:
      problems.append(
        f'{name} has shape {tuple(shapes[name])}, expected {expected[path]}'
      )
  raise_for(stage, problems)
  return paths


def raise_for(stage, problems):
  """Raises ConversionError that lists the first of the problems, if any."""
  if problems:
    shown = '; '.join(problems[:8])
    more = f'; and {len(problems) - 8} more' if len(problems) > 8 else ''
    raise ConversionError(f'{stage}: {shown}{more}')


def _count(pattern, shapes):
  return len({m[0] for name in shapes if (m := re.match(pattern, name))})


def _dims(shapes, name, rank):
  """Returns the shape of a variable that must have `rank` axes."""
  if len(shapes[name]) != rank or min(shapes[name]) < 1:
    raise ConversionError(
      f'{name} has shape {shapes[name]}, expected {rank} axes of 1 or more'
    )
  return shapes[name]


def _infer_encoder(parent, shapes):
  prefix = f'{parent}/factorized_attention'
  rows = _dims(shapes, f'{prefix}/position_embed/position_embedding_0:0', 3)[0]
  columns = _dims(shapes, f'{prefix}/position_embed/position_embedding_1:0', 2)[
    0
  ]
  hidden, heads, _ = _dims(shapes, f'{prefix}/self_attention_nd/q/kernel:0', 3)
  pattern = rf'{prefix}/self_attention_nd(_\d+)?/'
  return (rows, columns), hidden, heads, _count(pattern, shapes) // 2


def _infer_upsampler(stage, shapes):
  resolution, hidden, heads, num_layers = _infer_encoder(stage, shapes)
  return {
    'resolution': resolution,
    'hidden_size': hidden,
    'mlp_size': _dims(shapes, 'dense_4/kernel:0', 2)[1],
    'num_heads': heads,
    'num_layers': num_layers,
  }


def _infer_colorizer(stage, shapes):
  del stage
  core = 'col_tran_core'
  resolution, hidden, heads, num_layers = _infer_encoder(
    f'{core}/gray_scale_encoder', shapes
  )
  attention = f'{core}/outer_decoder/unmask_row_att_0'
  _, decoder_heads, size = _dims(shapes, f'{attention}/q/kernel:0', 3)
  conditioned = ''.join(
    letter
    for letter in 'qkv'
    if f'{attention}/cond_{letter}/kernel:0' in shapes
  )
  scale = True
  if conditioned:
    name = f'{attention}/cond_{conditioned[0]}/kernel:0'
    kernel = _dims(shapes, name, 3)
    scale = kernel[-1] == 2 * size
  mlp = None
  for kind in ('affine', 'shift'):
    if f'{core}/outer_decoder/{kind}_r_0/kernel:0' in shapes:
      mlp = kind
  norm = f'{core}/outer_decoder/conditional_layer_norm'
  conditional_norm = any(name.startswith(norm) for name in shapes)
  average = 'learnable'
  if conditional_norm and f'{norm}/spatial_average:0' not in shapes:
    average = 'mean'
  return {
    'resolution': resolution,
    'hidden_size': hidden,
    'mlp_size': _dims(shapes, f'dense_{4 * num_layers + 2}/kernel:0', 2)[1],
    'num_heads': decoder_heads,
    'num_outer_layers': _count(
      rf'{core}/outer_decoder/unmask_row_att_\d+/', shapes
    ),
    'num_inner_layers': _count(
      rf'{core}/inner_decoder/mask_row_att_\d+/', shapes
    ),
    'encoder_mlp_size': _dims(shapes, 'dense_2/kernel:0', 2)[1],
    'encoder_num_heads': heads,
    'num_encoder_layers': num_layers,
    'parallel_head': f'{core}/parallel_logits/kernel:0' in shapes,
    'conditional_norm': conditional_norm,
    'conditional_norm_average': average,
    'conditional_mlp': mlp,
    'conditional_attention': conditioned,
    'conditional_attention_scale': scale,
  }


def _read_upsampler(config):
  return {
    'hidden_size': config.get('hidden_size', 512),
    'mlp_size': config['ff_size'],
    'num_heads': config['num_heads'],
    'num_layers': config['num_encoder_layers'],
    'dropout': config.get('dropout', 0.0),
  }


def _read_colorizer(config):
  encoder, decoder = config['encoder'], config['decoder']
  return {
    'hidden_size': config.get('hidden_size', decoder['hidden_size']),
    'mlp_size': decoder['ff_size'],
    'num_heads': decoder['num_heads'],
    'num_outer_layers': decoder['num_outer_layers'],
    'num_inner_layers': decoder['num_inner_layers'],
    'encoder_mlp_size': encoder['ff_size'],
    'encoder_num_heads': encoder['num_heads'],
    'num_encoder_layers': encoder['num_encoder_layers'],
    'skip': decoder.get('skip', True),
    'parallel_head': 'encoder' in config.get('stage', 'decoder'),
    'conditional_norm': decoder.get('cond_ln', True),
    'conditional_norm_order': decoder.get('cond_ln_seq', 'sc'),
    'conditional_norm_average': decoder.get('cond_ln_sp_ave', 'learnable'),
    'conditional_norm_activation': decoder.get('cond_ln_act', 'identity'),
    'conditional_mlp': decoder.get('cond_mlp', 'affine') or None,
    'conditional_mlp_activation': decoder.get('cond_mlp_act', 'identity'),
    'conditional_attention': ''.join(
      letter for letter in 'qkv' if decoder.get(f'cond_att_{letter}', True)
    ),
    'conditional_attention_scale': decoder.get('cond_att_scale', True),
    'conditional_attention_activation': decoder.get('cond_att_act', 'identity'),
    'dropout': decoder.get('dropout', 0.0),
    'encoder_dropout': encoder.get('dropout', 0.0),
  }
