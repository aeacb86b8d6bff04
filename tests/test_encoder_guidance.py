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


def prior(recorded, weight, vividness):
  return encoder_guidance.prior(
    recorded.model, recorded.params, recorded.gray, weight, vividness
  )


def sample(recorded, **options):
  keys = jax.random.split(jax.random.key(0), len(recorded.gray))
  return sampling.sample(
    recorded.model, recorded.params, recorded.gray, keys, **options
  )


def test_the_encoder_s_prediction_is_that_of_a_teacher_forced_pass(recorded):
  model, params, gray = recorded.model, recorded.params, recorded.gray
  made = prior(recorded, 1, 0)
  codes = jnp.zeros((len(gray), *model.resolution), jnp.int32)
  _, aux = model.apply({'params': params}, gray, codes)
  expected = jax.nn.log_softmax(aux['parallel_logits'])
  np.testing.assert_allclose(made, expected, atol=1e-4)
  for i in range(len(gray)):
    alone = encoder_guidance.prior(model, params, gray[i : i + 1], 1, 0)
    np.testing.assert_array_equal(alone[0], made[i])


def test_a_model_without_that_head_cannot_guide(recorded):
  model = recorded.model.clone(parallel_head=False)
  with pytest.raises(ValueError, match='encoder alone'):
    encoder_guidance.prior(model, recorded.params, recorded.gray, 1, 0)
  # Vividness needs none.
  encoder_guidance.prior(model, recorded.params, recorded.gray, 0, 1)


def test_a_prior_is_a_sum_of_shares_and_nothing_for_nothing(recorded):
  assert not prior(recorded, 0, 0).any()
  both = prior(recorded, 2, 0.5)
  parts = 2 * prior(recorded, 1, 0) + 0.5 * prior(recorded, 0, 1)
  np.testing.assert_allclose(both, parts, atol=1e-4)


def test_vividness_adds_a_nat_for_ten_units_of_chroma_up_to_enough(recorded):
  gray = np.asarray(recorded.gray)
  added = np.asarray(prior(recorded, 0, 1))
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
  log_p = np.asarray(prior(recorded, 1, 0))

  def expected(strength):
    codes = sample(recorded, prior=prior(recorded, strength, 0)).codes
    return np.take_along_axis(log_p, np.asarray(codes)[..., None], -1).mean()

  means = [expected(strength) for strength in (0, 1, 4)]
  assert means[0] < means[1] < means[2]


def test_vivid_draws_have_more_chroma_and_the_model_s_own_likelihoods(recorded):
  drawn = [
    sample(recorded, prior=prior(recorded, 0, v), keep_logits=True)
    for v in (0, 1)
  ]
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


def test_a_hint_reaches_as_far_in_a_guided_draw(weights):
  colorizer = pipeline.Colorizer.from_pretrained(weights, fast=True)
  gray = np.full((32, 32, 1), 120, np.uint8)
  asked = hints.Guide(((16, 16, (200, 60, 40)),))
  kept = []
  draw = colorizer.run

  def run(*args):
    kept.append([None if prior is None else prior[0] for prior in args[6:8]])
    return draw(*args)

  colorizer.run = run
  for guide, weight in ((asked, 0), (None, 3), (asked, 3)):
    colorizer.draw(
      photo.read(gray), fast=True, guide=guide, encoder_weight=weight
    )
  alone, guided, both = kept
  assert alone[1] is None and guided[0] is None
  np.testing.assert_array_equal(both[0], 4 * alone[0])
  np.testing.assert_array_equal(both[1], guided[1])


def test_uncertainty_is_the_model_s_and_not_of_what_is_weighed(weights):
  colorizer = pipeline.Colorizer.from_pretrained(weights, fast=True)
  read = photo.read(np.full((32, 32, 1), 120, np.uint8))
  bits = [
    colorizer.draw(read, fast=True, uncertainty=True, vividness=v)[0].entropy
    for v in (0, 20)
  ]
  # Random weights: nearly even odds. 60 nats for vivid codes would leave none.
  assert bits[0].mean() > 6 and bits[1].mean() > 6
