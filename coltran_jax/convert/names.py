"""The names that the reference's variables have, for any configuration.

Keras numbers unnamed layers of a class in the order in which they are
*instantiated* (`dense`, `dense_1`, ...), which is not the order in which they
run. `reference_names` replays that order. Every tensor keeps its shape.
"""

import itertools


class _Counter:
  """Hands out Keras's automatic names: 'dense', 'dense_1', 'dense_2', ..."""

  def __init__(self):
    self._counts = {}

  def __call__(self, name):
    count = self._counts.get(name, 0)
    self._counts[name] = count + 1
    return f'{name}_{count}' if count else name


def reference_names(stage, model):
  """Returns {reference name: path of the parameter} for a model of a stage.

  stage: 'colorizer', 'color_upsampler' or 'spatial_upsampler'. Names are as in
  'col_tran_core/dense/kernel:0', paths as in ('code_embedding', 'kernel').
  """
  number = _Counter()
  if stage == 'colorizer':
    pairs = _colorizer(model, number)
  else:
    pairs = _upsampler(stage, model, number)
  return {f'{name}:0': tuple(path.split('/')) for name, path in pairs}


def _dense(name, path, bias=True):
  yield f'{name}/kernel', f'{path}/kernel'
  if bias:
    yield f'{name}/bias', f'{path}/bias'


def _layer_norm(name, path):
  yield f'{name}/gamma', f'{path}/scale'
  yield f'{name}/beta', f'{path}/bias'


def _position(name, path):
  yield f'{name}/position_embedding_0', f'{path}/rows'
  yield f'{name}/position_embedding_1', f'{path}/columns'


def _attention(name, path, axis, conditioned=''):
  for letter in 'qkv':
    yield f'{name}/{letter}/kernel', f'{path}/{letter}'
  yield f'{name}/output/kernel', f'{path}/output'
  index = 1 if axis == 'row' else 0
  yield f'{name}/relative_attention_bias_{index}', f'{path}/relative_bias'
  for letter in conditioned:
    yield f'{name}/cond_{letter}/kernel', f'{path}/condition_{letter}'


def _mlp(path, number):
  # The MLPs sit in a `Sequential`, whose name Keras leaves out.
  yield from _dense(number('dense'), f'{path}/mlp_in')
  yield from _dense(number('dense'), f'{path}/mlp_out')


def _encoder(parent, path, num_layers, number):
  parent = f'{parent}/{number("factorized_attention")}'
  yield from _position(
    f'{parent}/{number("position_embed")}', f'{path}/position'
  )
  blocks = [
    (axis, f'{path}/{axis}_block_{layer}')
    for layer in range(num_layers)
    for axis in ('row', 'column')
  ]
  for _, block in blocks:
    for norm in ('attention_norm', 'mlp_norm'):
      name = f'{parent}/{number("layer_normalization")}'
      yield from _layer_norm(name, f'{block}/{norm}')
  for axis, block in blocks:
    name = f'{parent}/{number("self_attention_nd")}'
    yield from _attention(name, f'{block}/attention', axis)
    yield from _mlp(block, number)


def _upsampler(stage, model, number):
  embeddings = (number('dense'), 'symbol'), (number('dense'), 'gray')
  for name, kind in embeddings:
    yield f'{stage}/{name}/kernel', f'inputs/{kind}_embedding'
  yield from _dense(f'{stage}/{number("dense")}', 'inputs')
  yield from _dense(f'{stage}/{number("dense")}', 'final_logits')
  yield from _encoder(stage, 'encoder', model.num_layers, number)


def _colorizer(model, number):
  core = 'col_tran_core'
  name = f'{core}/{number("dense")}'
  yield from _dense(name, 'code_embedding', bias=False)
  yield from _dense(f'{core}/auto_logits', 'final_logits')
  if model.parallel_head:
    name = f'{core}/parallel_logits'
    yield from _dense(name, 'parallel_logits', bias=False)
  yield from _layer_norm(
    f'{core}/{number("layer_normalization")}', 'final_norm'
  )

  encoder = f'{core}/gray_scale_encoder'
  yield from _dense(f'{encoder}/{number("dense")}', 'gray_embedding')
  yield from _encoder(encoder, 'encoder', model.num_encoder_layers, number)

  blocks = itertools.product(range(model.num_outer_layers), ('row', 'column'))
  yield from _decoder(
    f'{core}/outer_decoder',
    'outer_decoder',
    model,
    [
      {
        'path': f'{axis}_block_{layer}',
        'axis': axis,
        'attention': f'{"unmask_row" if axis == "row" else "mask_col"}_att_{layer}',
        'mlp': f'{axis[0]}_{layer}',
      }
      for layer, axis in blocks
    ],
    number,
  )
  yield from _decoder(
    f'{core}/inner_decoder',
    'inner_decoder',
    model,
    [
      {
        'path': f'block_{layer}',
        'axis': 'row',
        'attention': f'mask_row_att_{layer}',
        'mlp': f'c_{layer}',
      }
      for layer in range(model.num_inner_layers)
    ],
    number,
  )


def _decoder(parent, path, model, blocks, number):
  yield from _position(
    f'{parent}/{number("position_embed")}', f'{path}/position'
  )
  kind = (
    'conditional_layer_norm'
    if model.conditional_norm
    else 'layer_normalization'
  )
  norms = [
    (f'{parent}/{number(kind)}', f'{path}/{block["path"]}/{norm}')
    for block in blocks
    for norm in ('attention_norm', 'mlp_norm')
  ]
  for block in blocks:
    block_path = f'{path}/{block["path"]}'
    yield from _attention(
      f'{parent}/{block["attention"]}',
      f'{block_path}/attention',
      block['axis'],
      model.conditional_attention,
    )
    yield from _mlp(block_path, number)
    if model.conditional_mlp:
      name = f'{parent}/{model.conditional_mlp}_{block["mlp"]}'
      yield from _dense(name, f'{block_path}/mlp_condition')
  for name, norm_path in norms:
    if model.conditional_norm:
      if model.conditional_norm_average == 'learnable':
        yield f'{name}/spatial_average', f'{norm_path}/spatial_average'
      # Made when the norm first runs, hence after all MLPs of the decoder.
      yield from _dense(f'{name}/{number("dense")}', f'{norm_path}/projection')
    else:
      yield from _layer_norm(name, norm_path)
