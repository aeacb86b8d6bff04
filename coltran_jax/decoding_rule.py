"""The numbers that say how codes are drawn, where nobody says otherwise.

`DEFAULTS` draws from the model as it is; weights may ask for others (`decoding` in
config.json). What they do: `sampling.sample`, `encoder_guidance`, and of mean_of
`pipeline.Colorizer.draw`. Needs no jax: the command line reads it before.
"""

import numbers

DEFAULTS = {
  'temperature': 1.0,
  'min_p': 0.0,
  'encoder_weight': 0.0,
  'vividness': 0.0,
  'mean_of': 1,
}
_RANGES = {
  'temperature': (0, 1e6),
  'min_p': (0, 1),
  'encoder_weight': (0, 100),
  'vividness': (0, 100),
  'mean_of': (1, 64),
}


def check(rule):
  """Raises ValueError if a number of {name: number} is none, or out of range."""
  for name, value in rule.items():
    low, high = _RANGES[name]
    kind = numbers.Integral if is_whole(name) else numbers.Real
    number = isinstance(value, kind) and not isinstance(value, bool)
    if not number or not low <= value <= high:
      whole = 'whole ' if is_whole(name) else ''
      raise ValueError(
        f'{name} must be a {whole}number, {low:g} to {high:g}, not {value!r}'
      )


def is_whole(name):
  """Returns True if the number of that name is a whole one."""
  return isinstance(DEFAULTS[name], int)
