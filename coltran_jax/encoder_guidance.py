"""Draws that listen to the encoder, and dare more color: a prior for the sampler.

A decoder that was trained for minutes follows what it drew before, and comes to
trust it more than the photo: draws fade to gray, though the encoder knew better. Two
numbers put that right, added to the logits of each code before it is drawn
(`sampling.sample`):

- `encoder_weight` times the encoder's own log probability (its parallel head, section
  3), in the way of guidance in diffusion (Ho and Salimans 2022).
- `vividness` nats for every ten units of the code's chroma up to `ENOUGH`, as likely
  colours of photographs are dull (Zhang et al. 2016 weigh rare colours up in
  training). Beyond that all are alike: else red, whose codes have the most, is
  everywhere.

Both 0, the model is drawn from as it was trained.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import color, sampling

ENOUGH = 30.0  # Chroma, C* of Lab.


def prior(model, params, gray, encoder_weight, vividness):
  """Returns float32 [B, H, W, 512], to add to a colorizer's logits.

  One picture at a time: the same bits whatever the batch.

  Args:
    model, params: the colorizer.
    gray: int [B, ...], 0..255, of its `gray_resolution`.
    encoder_weight: of the encoder's log probabilities, 0 or more.
    vividness: nats for ten units of chroma (C* of Lab, up to `ENOUGH`), 0 or more.

  Raises ValueError for an encoder_weight and a model without a parallel head.
  """
  if encoder_weight and not model.parallel_head:
    raise ValueError('this colorizer predicts nothing by its encoder alone')
  weights = np.float32([encoder_weight, vividness])
  options = {'model': sampling.chunked(model), 'heeded': encoder_weight > 0}
  return np.stack([_prior(params, one, weights, **options) for one in gray])


@functools.partial(jax.jit, static_argnames=('model', 'heeded'))
def _prior(params, gray, weights, *, model, heeded):
  """Returns float32 [H, W, 512]; heeded: the encoder's weight is not 0."""
  # A table of all levels: there are fewer of them than pixels.
  ab, possible = color.code_chroma(jnp.arange(256))
  chroma = jnp.minimum(jnp.linalg.norm(ab, axis=-1), ENOUGH)
  chroma = jnp.where(possible, chroma, 0)
  added = weights[1] / 10 * chroma[model.coarse_gray(gray[None])[0]]
  if heeded:
    logits = model.apply({'params': params}, gray[None], method='expect')
    added += weights[0] * jax.nn.log_softmax(logits[0])
  return added
