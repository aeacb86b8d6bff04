"""Whole runs of Stable Diffusion with a ControlNet: numbers, and photos."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
from PIL import Image
import pytest
import skimage.color
import skimage.data

from coltran_jax import checkpoint, diffusion_pipeline, image, sharding
from coltran_jax.diffusion import (
  architectures,
  canny,
  files,
  generation,
  parts,
  prompts,
  schedulers,
  weights,
)

pytestmark = pytest.mark.usefixtures('no_cache', 'quick_programs')
FLOAT = np.float32
COFFEE = skimage.data.coffee()[:300, :500]
QUICK = {'steps': 2}


@pytest.fixture(scope='module')
def pipe(fixtures):
  return fixtures / 'diffusion/pipe'


@pytest.fixture(scope='module')
def recorded(fixtures):
  with np.load(fixtures / 'diffusion/expected.npz') as arrays:
    return dict(arrays)


def loaded(folder, devices=1, **options):
  return diffusion_pipeline.DiffusionColorizer.from_pretrained(
    folder, folder / 'controlnet', mesh=sharding.make_mesh(devices), **options
  )


@pytest.fixture(scope='module')
def colorizer(pipe):
  return loaded(pipe)


@pytest.fixture(scope='module')
def generate(pipe, recorded):
  """Runs `generation.generate` on the recorded prompts, without guesses."""
  found = parts.find(pipe, pipe / 'controlnet')
  noise, tokens = parts.texts(pipe, found['text_encoder'].module)
  params = {kind: weights.load(one) for kind, one in found.items()}
  texts = prompts.Prompts(found.pop('text_encoder'), tokens, jax.device_put)
  context = texts(*(str(recorded['prompts'][i]) for i in (1, 0)))
  networks = generation.Networks(**{k: one.module for k, one in found.items()})
  run = jax.jit(functools.partial(generation.generate, networks))

  def generated(
    name, steps, latents, picture=None, spacing='leading', **options
  ):
    of = dataclasses.replace(noise, spacing=spacing)
    table = schedulers.table(of, name, steps, options.get('strength', 1.0))
    condition, start = (
      np.moveaxis(recorded[key], 1, -1)[0] for key in ('t2i_condition', latents)
    )
    if picture is not None:
      start = generation.noised(
        networks, params, table.scale[0], picture, start
      )
    guidance, scale = options.get('guidance', 7.5), options.get('scale', 1.0)
    shared = context, FLOAT(guidance), FLOAT(scale)
    return run(params, table, shared, condition, start)

  decode = jax.jit(functools.partial(networks.vae.apply, method='decode'))
  generated.decode = functools.partial(decode, {'params': params['vae']})
  generated.scaling = networks.vae.scaling
  return generated


def test_text_to_image_by_ddim_gives_the_recorded_picture(generate, recorded):
  found = generate('ddim', 5, 't2i_latents')
  np.testing.assert_allclose(found, recorded['t2i_ddim5'][0], atol=1e-4)


@pytest.mark.parametrize('spacing', ['leading', 'linspace'])
@pytest.mark.parametrize('steps', [5, 20])
def test_text_to_image_by_unipc_gives_the_recorded_picture(
  spacing, steps, generate, recorded
):
  found = generate('unipc', steps, 't2i_latents', spacing=spacing)
  latents = recorded[f't2i_unipc_{spacing}_{steps}_latents']
  latents = np.moveaxis(latents, 1, -1) / generate.scaling
  expected = np.clip(generate.decode(latents)[0] / 2 + 0.5, 0, 1)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_image_to_image_gives_the_recorded_picture(generate, recorded):
  found = generate(
    'ddim',
    10,
    'i2i_noise',
    2 * np.moveaxis(recorded['i2i_image'], 1, -1)[0] - 1,
    strength=0.8,
    guidance=5,
    scale=0.9,
  )
  expected = recorded['i2i_ddim10_strength0.8_guidance5_scale0.9'][0]
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_whole_photo_keeps_size_and_luminance(colorizer):
  made = colorizer(COFFEE, **QUICK)[0]
  assert made.shape == COFFEE.shape
  lightness = [skimage.color.rgb2lab(x)[..., 0] for x in (made, COFFEE)]
  assert np.abs(lightness[0] - lightness[1]).mean() < 0.3
  assert np.abs(skimage.color.rgb2lab(made)[..., 1:]).max() > 5


def test_a_study_takes_the_edges_alone(colorizer):
  made = colorizer(COFFEE, study=True, **QUICK)[0]
  assert made.shape == COFFEE.shape
  # The same edges of another picture: two levels, as far apart.
  side, multiple = (
    colorizer.diffusion.side,
    colorizer.diffusion.networks.multiple,
  )
  picture, _ = image.fit(COFFEE, side, multiple)
  gray = np.asarray(skimage.color.rgb2gray(picture) * 255).astype(np.uint8)
  high = np.clip(gray // 2 * 2, 2, 200)
  low, higher = high.astype(np.uint8), (high + 54).astype(np.uint8)
  np.testing.assert_array_equal(canny.canny(low), canny.canny(higher))
  keys = jax.random.split(jax.random.key(0), 1)
  run = functools.partial(colorizer.diffusion.run, keys=keys, **QUICK)
  one, other = (run(x[None], study=True) for x in (low, higher))
  np.testing.assert_array_equal(one, other)
  one, other = (run(x[None]) for x in (low, higher))
  assert (one != other).any()


def test_a_result_depends_on_seed_and_photo_only(colorizer, pipe):
  gray = COFFEE[..., 0]
  several = colorizer(gray, num_samples=3, seed=5, **QUICK)
  assert (several[0] != several[1]).any()
  colorizer(COFFEE[::-1], seed=9, **QUICK)
  for other in (colorizer, loaded(pipe, devices=2)):
    (alone,) = other(gray, seed=5, **QUICK)
    np.testing.assert_array_equal(alone, several[0])


class Inverted:
  """Stands for a `Pipeline`: notes the sides that it gets, inverts the gray."""

  def __init__(self, like):
    self.networks, self.side, self.sides = like.networks, like.side, []

  def run(self, gray, keys, study, **options):
    assert gray.dtype == np.uint8 and len(keys) == len(gray)
    self.sides += gray.shape[1:]
    return np.stack([255 - gray] * 3, axis=-1)


@pytest.mark.parametrize('study', [False, True])
@pytest.mark.parametrize('size', ['original', 256])
@pytest.mark.parametrize('shape', [(1, 1), (7, 300), (301, 203), (65, 64, 3)])
def test_sides_need_be_no_multiples(shape, size, study, colorizer):
  inverted = Inverted(colorizer.diffusion)
  picture = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
  (made,) = diffusion_pipeline.DiffusionColorizer(inverted)(
    picture, size=size, study=study
  )
  expected = shape[:2] if size == 'original' else (256, 256)
  assert made.shape == (*expected, 3) and made.dtype == np.uint8
  assert not any(side % inverted.networks.multiple for side in inverted.sides)
  assert max(inverted.sides) == (128 if size == 'original' else 256)


def test_16_bit_and_other_kinds_come_back_as_they_came(colorizer):
  quick = diffusion_pipeline.DiffusionColorizer(Inverted(colorizer.diffusion))
  deep = (COFFEE[..., :1].astype(np.uint16) << 8) + 77
  assert quick(deep)[0].dtype == np.uint16
  assert quick(Image.fromarray(COFFEE), size=256)[0].size == (256, 256)


def test_a_step_in_bfloat16_keeps_no_copy_of_the_weights(fixtures):
  text = (fixtures / 'diffusion/sd15_tensors.json').read_text('utf-8')
  modules, params = {}, {}
  for kind in ('unet', 'controlnet', 'vae'):
    build = architectures.KINDS[kind].build
    module, inputs = build(json.loads(text)[kind]['config'], dtype='bfloat16')
    made = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
    modules[kind] = module
    params[kind] = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, 'bfloat16'), made
    )
  networks = generation.Networks(**modules)
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=FLOAT)
  table = schedulers.table(
    schedulers.Noise(np.linspace(0.99, 0.01, 1000)), 'ddim', 4
  )
  row = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), table
  )
  latents = shape((1, 8, 8, networks.vae.channels))
  compiled = (
    generation.program('cpu')
    .lower(
      generation.advance,
      (networks,),
      sharding.make_mesh(1),
      (params, (shape((2, 77, 768)), shape(()), shape(())), row),
      (shape((1, 64, 64, 3)), (latents,) * 4),
    )
    .compile()
  )
  size = sum(x.size for x in jax.tree.leaves(params))
  # 3.8 GB of float32 copies of what works here, were they all made at first.
  assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 4 * size


def test_bfloat16_gives_nearly_the_same_picture(pipe, colorizer):
  low = loaded(pipe, dtype='bfloat16')
  one, other = (
    c(COFFEE, study=True, **QUICK)[0].astype(int) for c in (colorizer, low)
  )
  difference = np.abs(one - other)
  assert difference.max() > 0 and difference.mean() < 4


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'size': 100}, 'size'),
    ({'seed': -1}, 'seed'),
    ({'num_samples': 0}, 'num_samples'),
    ({'strength': 0.01}, 'is none'),
    ({'sampler': 'euler'}, 'euler'),
  ],
)
def test_options_that_make_no_sense_are_refused(options, said, colorizer):
  with pytest.raises(ValueError, match=said):
    colorizer(COFFEE, **options)


def test_sides_that_the_networks_cannot_take_are_refused(colorizer):
  keys = jax.random.split(jax.random.key(0), 1)
  with pytest.raises(ValueError, match='multiples of 16, not 40x32'):
    colorizer.diffusion.run(np.zeros((1, 32, 40), np.uint8), keys)


@pytest.fixture
def copy(pipe, tmp_path):
  target = tmp_path / 'pipe'
  shutil.copytree(pipe, target)
  return target


def change(path, **values):
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_weights_that_are_not_finite_are_noticed(copy):
  from safetensors import numpy as safetensors_numpy

  file = copy / 'unet/diffusion_pytorch_model.safetensors'
  tensors = safetensors_numpy.load_file(file)
  tensors['conv_out.bias'][:] = np.nan
  safetensors_numpy.save_file(tensors, file)
  made = loaded(copy)
  with pytest.raises(FloatingPointError, match='weights are damaged'):
    made(COFFEE, **QUICK)


def test_folders_that_do_not_belong_together_are_refused(copy, pipe, tmp_path):
  def refused(said):
    with pytest.raises(checkpoint.CheckpointError, match=said):
      loaded(copy)

  change(copy / 'controlnet/config.json', cross_attention_dim=24)
  refused('width 24, .* has 16: they do not belong together')
  shutil.copy(pipe / 'controlnet/config.json', copy / 'controlnet')
  change(copy / 'controlnet/config.json', layers_per_block=2)
  refused('do not belong together')
  shutil.copy(pipe / 'controlnet/config.json', copy / 'controlnet')
  change(copy / 'tokenizer/vocab.json', extra=522)
  refused('the tokenizer has 523 tokens')
  (copy / 'text_encoder_2').mkdir()
  refused('XL is not supported; use')
  with pytest.raises(files.WeightsError, match='is no folder'):
    parts.find(tmp_path / 'nothing', copy / 'controlnet')
