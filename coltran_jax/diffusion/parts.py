"""The folders of a whole system: found, held against each other, reported on."""

import dataclasses
import math
import pathlib

from coltran_jax.diffusion import (
  architectures,
  files,
  schedulers,
  tokenizer,
  weights,
)

# Products of these stay float32: rounding would be seen in the pictures, and
# they take little of the time.
_EXACT = ('vae', 'text_encoder')


def find(folder, controlnet, dtype='float32', attention='auto'):
  """Returns {kind: `weights.Network`} of the four; reads no tensors.

  Raises WeightsError if one is missing, damaged or not supported, or if they do
  not belong together.
  """
  folder = pathlib.Path(folder)
  check_family(folder)
  found = {}
  for kind in architectures.KINDS:
    where = controlnet if kind == 'controlnet' else folder / kind
    of = 'float32' if kind in _EXACT else dtype
    found[kind] = weights.find(where, kind, attention, of)
  widths = {kind: found[kind].inputs for kind in ('unet', 'controlnet')}
  text = found['text_encoder'].module.features
  for kind, (latents, _, context, *_) in widths.items():
    if context.shape[-1] != text:
      raise files.WeightsError(
        f'{found[kind].file.parent} was made for text of width '
        f'{context.shape[-1]}, {folder} has {text}: they do not belong '
        'together (768 is Stable Diffusion 1, 1024 is 2)'
      )
    if latents.shape[-1] != found['vae'].module.channels:
      raise files.WeightsError(
        f'{found[kind].file.parent} was made for other latents than those of '
        f'{folder / "vae"}'
      )
  made = (found[kind].module.architecture for kind in widths)
  one, other = ((of.features, of.depth) for of in made)
  latents, _, _, condition = found['controlnet'].inputs
  shrunk = condition.shape[1] // latents.shape[1]
  if (
    one != other
    or shrunk != found['vae'].module.multiple
    or condition.shape[-1] != 3
  ):
    raise files.WeightsError(
      f'{controlnet} has blocks of {other} and takes pictures {shrunk} times '
      f'as large as latents, with {condition.shape[-1]} channels; '
      f'{folder / "unet"} has blocks of {one}: they do not belong together'
    )
  for network in found.values():
    weights.check(network)
  return found


def check_family(folder):
  """Raises WeightsError unless a folder may be Stable Diffusion 1 or 2."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise files.WeightsError(
      f'{folder} is no folder; give one in the layout of diffusers'
    )
  if (folder / 'text_encoder_2').exists():
    raise files.WeightsError(f'{folder}: {architectures.SDXL}')


def texts(folder, encoder):
  """Returns (`schedulers.Noise`, `tokenizer.Tokenizer`) of a folder.

  encoder: its `text_encoder.TextEncoder`. Raises WeightsError.
  """
  path = pathlib.Path(folder) / 'scheduler/scheduler_config.json'
  try:
    noise = schedulers.noise(files.read_json(path))
  except files.WeightsError as error:
    raise files.WeightsError(f'{path}: {error}') from None
  made = tokenizer.load(path.parent.parent / 'tokenizer', encoder.length)
  if made.size > encoder.vocabulary:
    raise files.WeightsError(
      f'{folder}: the tokenizer has {made.size} tokens, the text encoder '
      f'{encoder.vocabulary}; they do not belong together'
    )
  return noise, made


@dataclasses.dataclass(frozen=True)
class Report:
  """What `report` found.

  lines: what is there. problems: what is wrong, a line each; none if all is
  well.
  """

  lines: tuple[str, ...]
  problems: tuple[str, ...]


def report(folder):
  """Returns the `Report` of a folder: Stable Diffusion's, or a ControlNet's.

  Reads names and shapes of tensors, not the tensors.
  """
  folder = pathlib.Path(folder)
  lines, problems, found = [], [], {}
  alone = (folder / 'config.json').exists()  # A ControlNet has no more.
  try:
    check_family(folder)
  except files.WeightsError as error:
    return Report((), (str(error),))
  for kind in architectures.KINDS:
    if (kind == 'controlnet') != alone:
      continue
    try:
      network = weights.find(folder if alone else folder / kind, kind)
      wrong = weights.problems(network)
    except files.WeightsError as error:
      problems.append(str(error))
      continue
    found[kind] = network
    needed = network.parameters.keys()
    lines.append(
      f'{kind}: {len(needed - wrong.keys())} of {len(needed)} tensors match, '
      f'{network.size:,} parameters'
    )
    problems += [f'{network.file}: {one}' for one in wrong.values()]
  if 'text_encoder' in found:
    try:
      noise, tokens = texts(folder, found['text_encoder'].module)
      steps = len(noise.alphas_squared)
      lines.append(f'scheduler: predicts noise (epsilon), {steps} timesteps')
      lines.append(f'tokenizer: {tokens.size} tokens')
    except files.WeightsError as error:
      problems.append(str(error))
  if found:
    lines.append(_memory(found))
  return Report(tuple(lines), tuple(problems))


def _memory(found):
  """What the weights of networks take, in a line."""
  full = 4 * sum(network.size for network in found.values())
  halved = sum(
    2 * math.prod(shape)
    for kind, network in found.items()
    if kind not in _EXACT
    for _, shape in network.parameters.values()
    if len(shape) > 1
  )
  return (
    f'memory of the weights: {full / 1e9:.2f} GB, with --dtype bfloat16 '
    f'{(full - halved) / 1e9:.2f} GB'
  )
