"""CLIP's tokens of a prompt, by byte pair encoding (Sennrich et al., 2016).

The vocabulary is the folder's own: vocab.json and merges.txt, or tokenizer.json.
"""

import functools
import itertools
import math
import pathlib
import unicodedata

import numpy as np
import regex

from coltran_jax.diffusion import files

_START, _END = '<|startoftext|>', '<|endoftext|>'
_LAST = '</w>'  # Marks the last piece of a word.
# What follows in a word goes unread, far behind the end of the tokens that are
# kept: the time to join pieces grows with the square.
_LONGEST_WORD = 2000
_WORDS = regex.compile(
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|"
  r'[^\s\p{L}\p{N}]+'
)


@functools.cache
def _letters():
  """{byte: a printable character that stands for it}, as GPT-2 chose them."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  return {byte: chr(byte) for byte in printable} | {
    byte: chr(256 + i) for i, byte in enumerate(others)
  }


class Tokenizer:
  """Turns prompts into tokens; `load` makes one.

  vocabulary: {piece: token}. merges: pairs of pieces, the first to be joined
  first. pad: the piece that fills up. length: tokens a prompt has in the end.
  size: one more than the largest token.
  """

  def __init__(self, vocabulary, merges, pad=_END, length=77):
    self.length, self.size = length, max(vocabulary.values()) + 1
    self._vocabulary = vocabulary
    self._ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    self._pad = vocabulary[pad]

  def __call__(self, prompt):
    """Returns (tokens int32 [length], whether the prompt's end was left out)."""
    text = unicodedata.normalize('NFC', prompt).lower()
    pieces = []
    for word in _WORDS.findall(text):
      pieces += [word] if word in (_START, _END) else self._pieces(word)
    end = self._vocabulary[_END]
    tokens = [self._vocabulary.get(piece, end) for piece in pieces]
    kept = tokens[: self.length - 2]
    row = [self._vocabulary[_START], *kept, end]
    row += [self._pad] * (self.length - len(row))
    return np.array(row, np.int32), len(tokens) > len(kept)

  def _pieces(self, word):
    """The pieces of one word."""
    letters, data = _letters(), word.encode('utf-8', 'replace')[:_LONGEST_WORD]
    pieces = [letters[byte] for byte in data]
    pieces[-1] += _LAST
    while len(pieces) > 1:
      ranks = [
        self._ranks.get(pair, math.inf) for pair in itertools.pairwise(pieces)
      ]
      best = min(ranks)
      if best == math.inf:
        break
      joined, i = [], 0
      while i < len(pieces):
        whole = i < len(ranks) and ranks[i] == best
        joined.append(''.join(pieces[i : i + 1 + whole]))
        i += 1 + whole
      pieces = joined
    return pieces


def load(folder, length=77):
  """Returns the `Tokenizer` of a folder. Raises WeightsError."""
  folder = pathlib.Path(folder)
  try:
    if (folder / 'vocab.json').exists():
      vocabulary = files.read_json(folder / 'vocab.json')
      lines = files.read_text(folder / 'merges.txt').splitlines()
      # The first line is a version.
      merges = [line.split() for line in lines[1:] if line.strip()]
    else:
      found = files.read_json(folder / 'tokenizer.json')
      vocabulary = dict(found['model']['vocab'])
      merges = [
        pair.split() if isinstance(pair, str) else pair
        for pair in found['model']['merges']
      ]
      for added in found.get('added_tokens', ()):
        vocabulary[added['content']] = added['id']
    if not all(type(token) is int for token in vocabulary.values()):
      raise ValueError('a token that is no number')
    if any(len(pair) != 2 for pair in merges):
      raise ValueError('a merge that is no pair')
    return Tokenizer(vocabulary, merges, _pad(folder), length)
  except files.WeightsError:
    raise
  except Exception as error:  # What is wrong in it decides the kind.
    raise files.WeightsError(
      f'{folder} holds no tokenizer of CLIP: {type(error).__name__} {error}'
    ) from None


def _pad(folder):
  """The piece that fills up; Stable Diffusion 2 has another than 1."""
  for name in ('special_tokens_map.json', 'tokenizer_config.json'):
    if (folder / name).exists():
      pad = files.read_json(folder / name).get('pad_token')
      if pad is not None:
        return pad['content'] if isinstance(pad, dict) else pad
  return _END
