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

import jax
import jax.numpy as jnp

from coltran_jax import color

ENOUGH = 30.0  # Chroma, C* of Lab.


def prior(gray, expected, encoder_weight, vividness):
  """Returns float32 [..., 512], to add to a colorizer's logits.

  gray: int [...], 0..255, as coarse as the codes. expected: float32 [..., 512],
  logits of the encoder's own prediction. encoder_weight: of its log probabilities.
  vividness: nats for ten units of chroma (C* of Lab, up to `ENOUGH`). Either may
  be None, for nothing, not both.
  """
  added = 0.0
  if encoder_weight is not None:
    added += encoder_weight * jax.nn.log_softmax(expected)
  if vividness is not None:
    # A table of all levels: there are fewer of them than pixels.
    ab, possible = color.code_chroma(jnp.arange(256))
    chroma = jnp.minimum(jnp.linalg.norm(ab, axis=-1), ENOUGH)
    added += vividness / 10 * jnp.where(possible, chroma, 0)[gray]
  return added
