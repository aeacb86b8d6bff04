"""Tokens, edges, schedules and whole runs, against recorded numbers."""

import dataclasses
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coltran_jax.diffusion import canny, files, schedulers, tokenizer

FLOAT = np.float32
SCHEDULER = 'scheduler/scheduler_config.json'


@pytest.fixture(scope='module')
def pipe(fixtures):
  return fixtures / 'diffusion/pipe'


@pytest.fixture(scope='module')
def recorded(fixtures):
  with np.load(fixtures / 'diffusion/expected.npz') as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def config(pipe):
  return json.loads((pipe / SCHEDULER).read_text('utf-8'))


@pytest.fixture(scope='module')
def noise(config):
  return schedulers.noise(config)


def test_tokens_are_those_of_transformers(pipe, recorded):
  tokens = tokenizer.load(pipe / 'tokenizer')
  for prompt, expected in zip(
    recorded['prompts'], recorded['prompt_ids'], strict=True
  ):
    np.testing.assert_array_equal(tokens(str(prompt))[0], expected)
  cut = [bool(tokens(str(prompt))[1]) for prompt in recorded['prompts']]
  assert cut == [False] * 4 + [True, False]


@pytest.mark.parametrize('as_pairs', [True, False])
def test_a_tokenizer_json_serves_as_well(as_pairs, pipe, tmp_path, recorded):
  source = pipe / 'tokenizer'
  vocabulary = json.loads((source / 'vocab.json').read_text('utf-8'))
  lines = (source / 'merges.txt').read_text('utf-8').splitlines()[1:]
  ends = ('<|startoftext|>', '<|endoftext|>')
  added = [{'id': vocabulary.pop(one), 'content': one} for one in ends]
  merges = [line.split() for line in lines] if as_pairs else lines
  found = {
    'model': {'vocab': vocabulary, 'merges': merges},
    'added_tokens': added,
  }
  (tmp_path / 'tokenizer.json').write_text(json.dumps(found), 'utf-8')
  special = {'pad_token': {'content': '!'}}  # As in Stable Diffusion 2.
  (tmp_path / 'special_tokens_map.json').write_text(json.dumps(special))
  row, _ = tokenizer.load(tmp_path)('Pelé & Giacinto Facchetti shaking hands')
  expected = recorded['prompt_ids'][3]
  length = list(expected).index(521) + 1
  np.testing.assert_array_equal(row[:length], expected[:length])
  assert set(row[length:]) == {0}


@pytest.mark.parametrize(
  'prompt', ['x' * 10_000, 'xy, ' * 2500, '\ud800é日本' * 9]
)
def test_any_prompt_becomes_77_tokens(prompt, pipe):
  row, cut = tokenizer.load(pipe / 'tokenizer')(prompt)
  assert row.shape == (77,) and cut
  assert row[0] == 520 and row[-1] == 521 and 521 not in row[:-1]


@pytest.mark.parametrize(
  'texts',
  [
    {},
    {'vocab.json': '{}'},
    {'vocab.json': '{"a": "b"}', 'merges.txt': ''},
    {'vocab.json': '{"<|endoftext|>": 1}', 'merges.txt': 'v\na b c'},
    {'tokenizer.json': '{"model": {}}'},
    {'tokenizer.json': '{"model": {"vocab": {}, "merges": [1]}}'},
  ],
)
def test_a_broken_tokenizer_is_named(texts, tmp_path):
  for name, text in texts.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(files.WeightsError, match=str(tmp_path)):
    tokenizer.load(tmp_path)


def test_edges_are_opencv_s_in_every_pixel(fixtures):
  run = jax.jit(canny.canny)
  with np.load(fixtures / 'diffusion/canny.npz') as arrays:
    names = [name for name in arrays if ':canny_' in name]
    assert len(names) == 12
    for name in names:
      photo, _, rest = name.partition(':canny_')
      kind, low, high = rest.split('_')
      found = run(arrays[f'{photo}:{kind}'], int(low), int(high))
      np.testing.assert_array_equal(found, arrays[name], name)


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (2, 3), (17, 5, 3)])
def test_edges_of_tiny_pictures_are_opencv_s(shape):
  run = jax.jit(canny.canny)
  for seed in range(20):
    random = np.random.RandomState(seed)
    picture = random.randint(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(run(picture), cv2.Canny(picture, 100, 200))


@pytest.mark.parametrize('name', schedulers.NAMES)
@pytest.mark.parametrize('strength', [1.0, 0.5])
def test_what_has_one_clean_picture_comes_to_it(name, strength, noise):
  """Were the UNet perfect: every path leads to the one picture there is."""
  random = np.random.RandomState(0)
  clean, dirt = random.randn(2, 4, 4).astype(FLOAT)
  table = schedulers.table(noise, name, 8, strength)
  scale = dict(zip(table.timesteps.tolist(), table.scale, strict=True))
  alpha, sigma = next(iter(scale.values()))
  timesteps = jnp.array(list(scale))

  def predict(x, timestep):
    row = jnp.argmax(timesteps == timestep)
    alpha, sigma = jnp.asarray(table.scale)[row]
    return (x - alpha * clean) / sigma

  found = schedulers.run(table, predict, alpha * clean + sigma * dirt)
  # DDIM's last step keeps the little noise of timestep 0.
  last = np.sqrt(1 - noise.alphas_squared[0]) if name == 'ddim' else 0
  np.testing.assert_allclose(found, clean, atol=1e-4 + 3 * last)


@pytest.mark.parametrize(
  ('name', 'spacing', 'expected'),
  [
    ('ddim', 'leading', [751, 501, 251, 1]),
    ('ddim', 'linspace', [999, 666, 333, 0]),
    ('ddim', 'trailing', [999, 749, 499, 249]),
    ('unipc', 'leading', [801, 601, 401, 201]),
    ('unipc', 'linspace', [999, 749, 500, 250]),
  ],
)
def test_timesteps_are_spaced_as_the_folder_says(
  name, spacing, expected, noise
):
  of = dataclasses.replace(noise, spacing=spacing)
  table = schedulers.table(of, name, 4)
  assert table.timesteps.tolist() == expected
  half = schedulers.table(of, name, 4, strength=0.5)
  assert half.timesteps.tolist() == expected[2:]


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (('euler', 4), 'euler'),
    (('ddim', 0), 'steps'),
    (('unipc', 1001), 'steps'),
    (('unipc', 1000), 'steps'),
    (('ddim', 4, 0.2), 'is none'),
    (('ddim', 4, 1.5), 'strength'),
    (('ddim', 4, 0.0), 'strength'),
  ],
)
def test_a_schedule_that_makes_no_sense_is_refused(arguments, said, noise):
  with pytest.raises(ValueError, match=said):
    schedulers.table(noise, *arguments)


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'prediction_type': 'v_prediction'}, 'use a folder .*2-1-base'),
    ({'prediction_type': 'sample'}, 'does not predict noise'),
    ({'rescale_betas_zero_snr': True}, 'rescale_betas_zero_snr'),
    ({'beta_schedule': 'squaredcos_cap_v2'}, 'squaredcos'),
    ({'num_train_timesteps': 10**9}, 'not supported'),
    ({'beta_end': 'a'}, 'not supported'),
    ({'steps_offset': -5}, 'not supported'),
  ],
)
def test_a_scheduler_that_is_not_supported_is_refused(change, said, config):
  with pytest.raises(files.WeightsError, match=said):
    schedulers.noise(config | change)
