"""Small text files of a diffusers folder, and what is said if one is wrong."""

import json
import pathlib

_MAX_BYTES = 1 << 25  # The largest, a tokenizer.json, has 4 MB.


class WeightsError(ValueError):
  """A folder is missing, damaged or unsupported; says which, and what to do."""


def read_json(path):
  """Returns the object in a JSON file. Raises WeightsError if there is none."""
  try:
    found = json.loads(read_text(path))
  except (ValueError, RecursionError) as error:
    raise WeightsError(f'{path} is no JSON file: {error}') from None
  if not isinstance(found, dict):
    raise WeightsError(f'{path} holds no JSON object')
  return found


def read_text(path):
  """Returns the text in a UTF-8 file. Raises WeightsError if there is none."""
  path = pathlib.Path(path)
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise WeightsError(f'{path} is too large for what it should be')
    return path.read_text('utf-8')
  except FileNotFoundError:
    raise WeightsError(
      f'{path} is missing; give a folder in the layout of diffusers, '
      'downloaded whole'
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    raise WeightsError(f'{path} cannot be read: {error}') from None
