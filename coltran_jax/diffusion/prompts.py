"""Prompts to what the UNet reads, by a text encoder that is not there for long."""

import logging

import jax
import numpy as np

from coltran_jax.diffusion import weights

_log = logging.getLogger('coltran')


class Prompts:
  """Encodes prompts, and knows the last ones.

  The text encoder's parameters, an eighth of the UNet's, are in memory only
  while it works: photos mostly come with the same prompts.

  network: its `weights.Network`. tokenizer: a `tokenizer.Tokenizer`. put: as of
  `weights.load`.
  """

  def __init__(self, network, tokenizer, put):
    self._network, self._tokenizer, self._put = network, tokenizer, put
    self._last = None, None

  def __call__(self, *texts):
    """Returns float32 [B, S, D] of B texts of at most S - 2 tokens.

    More are left out, and the log says so. Raises WeightsError, see
    `weights.load`.
    """
    if self._last[0] != texts:
      tokens = np.stack([self._tokens(text) for text in texts])
      params = weights.load(self._network, self._put)
      apply = jax.jit(self._network.module.apply)
      self._last = texts, apply({'params': params}, tokens)
    return self._last[1]

  def _tokens(self, text):
    tokens, cut = self._tokenizer(text)
    if cut:
      _log.warning(
        'the prompt %r... is too long: what follows its first %d tokens is '
        'left out',
        text[:40],
        self._tokenizer.length - 2,
      )
    return tokens
