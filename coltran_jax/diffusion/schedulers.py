"""DDIM and UniPC as tables: what each step does is linear in few arrays.

Latents x = alpha * clean + sigma * noise. The UNet's noise gives an estimate of
the clean latents, and both samplers take fixed combinations of this, earlier
estimates and latents. So a schedule is made on the host, and one loop on the
device serves both. Song et al., 2021; Zhao et al., 2023 (order 2, B(h) = e^h - 1,
as diffusers has it). Axes: S steps.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.diffusion import files

NAMES = ('ddim', 'unipc')


@dataclasses.dataclass(frozen=True)
class Noise:
  """How latents were mixed with noise in training.

  Attributes:
    alphas_squared: float64 [T], the share of the clean latents' variance.
    spacing: of timesteps, 'leading', 'linspace' or 'trailing'.
    offset: added to 'leading' timesteps.
    to_one: whether DDIM's last step ends without noise.
  """

  alphas_squared: np.ndarray
  spacing: str = 'leading'
  offset: int = 0
  to_one: bool = True


class Table(flax.struct.PyTreeNode):
  """S steps, as arrays.

  Attributes:
    timesteps: int32 [S].
    scale: float32 [S, 2], alpha and sigma of the latents at each.
    correct: float32 [S, 5], what gives corrected latents, of (latents, the ones
      before these, clean estimates now, one and two steps ago).
    predict: float32 [S, 3], what gives the next latents, of (corrected latents,
      clean estimates now and one step ago).
  """

  timesteps: jax.Array
  scale: jax.Array
  correct: jax.Array
  predict: jax.Array


def noise(config):
  """Returns the `Noise` of a scheduler_config.json.

  Raises WeightsError if it is of a kind that is not supported.
  """
  kind = config.get('prediction_type', 'epsilon')
  if kind != 'epsilon':
    raise files.WeightsError(
      f"'prediction_type' is {kind!r}: this network does not predict noise "
      'and is not supported; use a folder that does, such as '
      'stabilityai/stable-diffusion-2-1-base in the place of -2-1'
    )
  for key in ('rescale_betas_zero_snr', 'thresholding', 'trained_betas'):
    if config.get(key):
      raise files.WeightsError(f'{key!r} is {config[key]!r}: not supported')
  count = config.get('num_train_timesteps', 1000)
  ends = config.get('beta_start', 0.0001), config.get('beta_end', 0.02)
  schedule = config.get('beta_schedule', 'linear')
  spacing = config.get('timestep_spacing', 'leading')
  offset = config.get('steps_offset', 0)
  if (
    schedule not in ('linear', 'scaled_linear')
    or spacing not in ('leading', 'linspace', 'trailing')
    or type(count) is not int
    or not 1 < count <= 100_000
    or type(offset) is not int
    or not 0 <= offset < count
    or not all(type(end) in (int, float) and 0 < end < 1 for end in ends)
  ):
    raise files.WeightsError(
      'its betas or timesteps are not supported: '
      f'{schedule!r} {ends} {spacing!r} {count!r} {offset!r}'
    )
  power = 2 if schedule == 'scaled_linear' else 1
  betas = np.linspace(*np.power(ends, 1 / power), count) ** power
  return Noise(
    np.cumprod(1 - betas),
    spacing,
    offset,
    bool(config.get('set_alpha_to_one', True)),
  )


def table(of, name, steps, strength=1.0):
  """Returns the `Table` of a sampler.

  Args:
    of: `Noise`.
    name: 'ddim' or 'unipc'.
    steps: how many of them lead from noise to a picture.
    strength: in 0..1; of the steps only so many, the last, are taken.

  Raises:
    ValueError: unknown name, too many steps, or none left.
  """
  if name not in NAMES:
    raise ValueError(f'the sampler must be one of {NAMES}, not {name!r}')
  if not 0 < strength <= 1:
    raise ValueError(f'strength must be above 0 and at most 1, not {strength}')
  total = len(of.alphas_squared)
  wrong = f'steps must be 1 to a few hundred, not {steps}'
  if not 1 <= steps < total:
    raise ValueError(wrong)
  timesteps = _timesteps(of, steps, name == 'unipc')
  if timesteps.max() >= total:
    raise ValueError(wrong)
  count = min(int(steps * strength), steps)
  if count < 1:
    raise ValueError(
      f'strength {strength} of {steps} steps is none; give more of either'
    )
  timesteps = timesteps[steps - count :]
  if name == 'ddim':
    return _ddim(of, timesteps, total // steps)
  return _unipc(of, timesteps)


def _timesteps(of, steps, one_more):
  """int64 [S], from high to low. one_more: UniPC has another point at the end."""
  total, points = len(of.alphas_squared), steps + one_more
  if of.spacing == 'linspace':
    ascending = np.linspace(0, total - 1, points).round()[one_more:]
    return ascending[::-1].astype(np.int64)
  if of.spacing == 'trailing':
    spaced = total - np.arange(steps) * (total / steps)
    return spaced.round().astype(np.int64) - 1
  ascending = np.arange(points)[one_more:] * (total // points)
  return ascending[::-1] + of.offset


def _ddim(of, timesteps, stride):
  squared = of.alphas_squared
  end = 1.0 if of.to_one else squared[0]
  before = timesteps - stride
  after = np.where(before >= 0, squared[before.clip(0)], end)
  alpha, sigma = np.sqrt(squared[timesteps]), np.sqrt(1 - squared[timesteps])
  keep = np.sqrt(1 - after) / sigma
  zero = np.zeros_like(keep)
  correct = np.tile(np.eye(5)[0], (len(timesteps), 1))  # Latents as they are.
  predict = np.stack([keep, np.sqrt(after) - keep * alpha, zero], axis=1)
  return _table(timesteps, alpha, sigma, correct, predict)


def _unipc(of, timesteps):
  squared = of.alphas_squared[timesteps]
  alpha = np.append(np.sqrt(squared), 1)  # The last step ends without noise.
  sigma = np.append(np.sqrt(1 - squared), 0)
  with np.errstate(divide='ignore'):
    logs = np.log(alpha) - np.log(sigma)
  count = len(timesteps)
  correct, predict = np.zeros((count, 5)), np.zeros((count, 3))
  correct[0, 0] = 1
  order = 0  # Of the step before.
  for i in range(count):
    if i:
      correct[i, 1:] = _corrector(alpha, sigma, logs, i, order)
    order = min(2, count - i, order + 1)  # The last step is of order 1.
    predict[i] = _predictor(alpha, sigma, logs, i, order)
  return _table(timesteps, alpha[:-1], sigma[:-1], correct, predict)


def _predictor(alpha, sigma, logs, i, order):
  """Of (latents, clean estimates at i and i - 1): latents at i + 1."""
  h = logs[i + 1] - logs[i]
  keep, gain = sigma[i + 1] / sigma[i], -alpha[i + 1] * np.expm1(-h)
  if order == 1:
    return keep, gain, 0
  half = gain / 2 * h / (logs[i - 1] - logs[i])  # Of the estimates' difference.
  return keep, gain - half, half


def _corrector(alpha, sigma, logs, i, order):
  """Of (latents at i - 1, clean estimates at i, i - 1, i - 2): latents at i."""
  h = logs[i] - logs[i - 1]
  keep, gain = sigma[i] / sigma[i - 1], -alpha[i] * np.expm1(-h)
  if order == 1:
    return keep, gain / 2, gain / 2, 0
  ratio = (logs[i - 2] - logs[i - 1]) / h
  first = np.expm1(-h) / -h - 1
  second = first / -h - 1 / 2
  # So that constant and linear changes of the estimate are met exactly.
  old, new = np.linalg.solve(
    [[1, 1], [ratio, 1]], np.array([first, 2 * second]) / np.expm1(-h)
  )
  old = old / ratio
  return keep, gain * new, gain * (1 - old - new), gain * old


def _table(timesteps, alpha, sigma, correct, predict):
  scale = np.stack([alpha, sigma], axis=1)
  return Table(
    timesteps.astype(np.int32),
    *(x.astype(np.float32) for x in (scale, correct, predict)),
  )


def start(latents):
  """Returns what `step` carries before the first step, of noisy latents."""
  zero = jnp.zeros_like(latents)
  return latents, zero, zero, zero


def step(row, predict_noise, carry):
  """Returns carry after one step; its first array are the latents.

  Args:
    row: of `table`, all that has one entry a step.
    predict_noise: function of (latents, timestep []) -> noise, as large.
    carry: latents at the noise of this timestep, those before, and the last two
      estimates of clean ones.
  """
  x, last, one_ago, two_ago = carry
  alpha, sigma = row.scale
  clean = (x - sigma * predict_noise(x, row.timesteps)) / alpha
  past = (x, last, clean, one_ago, two_ago)
  x = sum(weight * one for weight, one in zip(row.correct, past, strict=True))
  now = (x, clean, one_ago)
  following = sum(
    weight * one for weight, one in zip(row.predict, now, strict=True)
  )
  return following, x, clean, one_ago


def run(table, predict_noise, latents):
  """Returns clean latents of noisy ones, all steps in one loop.

  table: of `table`. The rest as of `start` and `step`.
  """

  def body(carry, row):
    return step(row, predict_noise, carry), None

  (latents, *_), _ = jax.lax.scan(body, start(latents), table)
  return latents
