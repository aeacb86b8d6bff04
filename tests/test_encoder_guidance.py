"""Guided draws heed the encoder, vivid ones are colored, and both keep likelihoods."""

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coltran_jax import (
  color,
  encoder_guidance,
  hints,
  photo,
  pipeline,
  sampling,
)


@pytest.fixture(scope='module')
def recorded():
  return conftest.recorded('colorizer_base')


def parallel_logits(recorded):
  """[B, H, W, 512], of the encoder, by a teacher-forced pass of any codes."""
  codes = jnp.zeros((len(recorded.gray), *recorded.model.resolution), jnp.int32)
  variables = {'params': recorded.params}
  return recorded.model.apply(variables, recorded.gray, codes)[1][
    'parallel_logits'
  ]


def prior(recorded, weight, vividness):
  logits = parallel_logits(recorded)
  return encoder_guidance.prior(recorded.gray, logits, weight, vividness)


def sample(recorded, count=None, **options):
  keys = jax.random.split(jax.random.key(0), len(recorded.gray))
  return sampling.sample(
    recorded.model,
    recorded.params,
    recorded.gray[:count],
    keys[:count],
    **options,
  )


def test_a_heavy_encoder_gets_what_a_teacher_forced_pass_says(recorded):
  codes = sample(recorded, temperature=0, encoder_weight=1e6).codes
  best = parallel_logits(recorded).argmax(axis=-1)
  np.testing.assert_array_equal(codes, best)
  assert (sample(recorded, temperature=0).codes != best).any()


def test_a_guided_draw_is_the_same_alone_and_among_others(recorded):
  options = {'encoder_weight': 2, 'vividness': 1}
  alone, among = sample(recorded, 1, **options), sample(recorded, **options)
  np.testing.assert_array_equal(alone.codes[0], among.codes[0])
  np.testing.assert_array_equal(alone.log_probs[0], among.log_probs[0])


def test_a_model_without_that_head_cannot_guide(recorded):
  model = recorded.model.clone(parallel_head=False)
  keys = jax.random.split(jax.random.key(0), 1)
  inputs = model, recorded.params, recorded.gray[:1], keys
  with pytest.raises(ValueError, match='encoder alone'):
    sampling.sample(*inputs, encoder_weight=1)
  stages = {'colorizer': (model, recorded.params)}
  with pytest.raises(ValueError, match='encoder alone'):
    pipeline.Colorizer(stages).rule(encoder_weight=1)
  # Vividness needs none.
  sampling.sample(*inputs, vividness=1)


def test_a_prior_is_a_sum_of_shares(recorded):
  both = prior(recorded, 2, 0.5)
  parts = 2 * prior(recorded, 1, None) + 0.5 * prior(recorded, None, 1)
  np.testing.assert_allclose(both, parts, atol=1e-4)


def test_vividness_adds_a_nat_for_ten_units_of_chroma_up_to_enough(recorded):
  gray = np.asarray(recorded.gray)
  added = np.asarray(prior(recorded, None, 1))
  ab, possible = color.code_chroma(gray)
  chroma = np.minimum(np.linalg.norm(ab, axis=-1), encoder_guidance.ENOUGH)
  expected = np.where(possible, chroma, 0) / 10
  np.testing.assert_allclose(added, expected, atol=1e-5)
  assert added.max() > 1  # Something is vivid.


def test_what_a_code_means_at_a_gray_is_of_that_gray_and_in_its_cube():
  levels = np.arange(0, 255, 5)
  ab, possible = map(np.asarray, color.code_chroma(levels))
  assert possible.any(axis=1).all()
  neutral = (levels >> 5) * 73  # The cube on the diagonal of gray.
  at = np.arange(len(levels)), neutral
  assert np.linalg.norm(ab[at], axis=-1)[possible[at]].max() < 8
  # Of no gray are red, green and blue all possible: that of blue is dark.
  assert not possible[:, [7 << 6, 7 << 3, 7]].all(axis=1).any()


def test_guided_draws_are_what_the_encoder_expects(recorded):
  log_p = np.asarray(prior(recorded, 1, None))

  def expected(strength):
    codes = sample(recorded, encoder_weight=strength).codes
    return np.take_along_axis(log_p, np.asarray(codes)[..., None], -1).mean()

  means = [expected(strength) for strength in (0, 1, 4)]
  assert means[0] < means[1] < means[2]


def test_vivid_draws_have_more_chroma_and_the_model_s_own_likelihoods(recorded):
  drawn = [sample(recorded, vividness=v, keep_logits=True) for v in (0, 1)]
  chroma = [
    np.linalg.norm(
      color.to_lab(color.from_codes(one.codes) / 255)[..., 1:], axis=-1
    ).mean()
    for one in drawn
  ]
  assert chroma[1] > chroma[0] + 1
  own = jax.nn.log_softmax(drawn[1].logits)
  own = np.take_along_axis(np.asarray(own), drawn[1].codes[..., None], -1)
  np.testing.assert_allclose(drawn[1].log_probs, own[..., 0], atol=1e-5)


def test_a_hint_reaches_as_far_in_a_guided_draw(weights, monkeypatch):
  colorizer = pipeline.Colorizer.from_pretrained(weights, fast=True)
  gray = np.full((32, 32, 1), 120, np.uint8)
  asked = hints.Guide(((16, 16, (200, 60, 40)),))
  kept = []
  draw = sampling.sample

  def sample(*args, **options):
    kept.append(options['prior'])
    return draw(*args, **options)

  monkeypatch.setattr(sampling, 'sample', sample)
  for weight in (0, 3):
    colorizer.draw(
      photo.read(gray), fast=True, guide=asked, encoder_weight=weight
    )
  np.testing.assert_array_equal(kept[1], 4 * kept[0])


def test_uncertainty_is_the_model_s_and_not_of_what_is_weighed(weights):
  colorizer = pipeline.Colorizer.from_pretrained(weights, fast=True)
  read = photo.read(np.full((32, 32, 1), 120, np.uint8))
  bits = [
    colorizer.draw(read, fast=True, uncertainty=True, vividness=v)[0].entropy
    for v in (0, 20)
  ]
  # Random weights: nearly even odds. 60 nats for vivid codes would leave none.
  assert bits[0].mean() > 6 and bits[1].mean() > 6
