"""Stable Diffusion with a ControlNet: from gray pictures to colored ones.

Two ways: image-to-image from the gray picture, which keeps what it shows, and
text-to-image as the study did. In both, Canny edges of the picture guide the
UNet through the ControlNet. Axes: B batch, H height, W width.
"""

import functools
import operator

import jax
import numpy as np

from coltran_jax import sharding
from coltran_jax.diffusion import generation, parts, prompts, schedulers
from coltran_jax.diffusion import weights as weights_lib

# Of the study, for want of real weights to find better ones with.
PROMPT = 'add color to this image, portrait, high quality'
NEGATIVE_PROMPT = 'black and white, cartoon, low quality'
STRENGTH, STEPS, GUIDANCE = 0.85, 20, 7.5


class Pipeline:
  """Colours gray pictures; `from_pretrained` makes one.

  Attributes:
    networks: `generation.Networks`.
    side: of the pictures that the UNet was trained on, in pixels.
  """

  def __init__(self, found, prompts, noise, mesh):
    self.networks = generation.Networks(
      **{kind: one.module for kind, one in found.items()}
    )
    self.side = self.networks.unet.sample_size * self.networks.vae.multiple
    self._found, self._prompts = found, prompts
    self._noise, self._mesh = noise, mesh

  @functools.cached_property
  def _params(self):
    put = functools.partial(
      jax.device_put, device=sharding.replicated(self._mesh)
    )
    return {
      kind: weights_lib.load(one, put) for kind, one in self._found.items()
    }

  @classmethod
  def from_pretrained(
    cls, weights, controlnet, dtype='float32', attention='auto', mesh=None
  ):
    """Returns a Pipeline of two folders in the layout of diffusers.

    All tensors are accounted for, but the first `run` reads them: after the
    text encoder has done its work and has left memory.

    Args:
      weights: with the folders unet, vae, text_encoder, tokenizer, scheduler.
      controlnet: with the ControlNet's config.json and tensors.
      dtype: of UNet and ControlNet, 'float32' or 'bfloat16'.
      attention: see `attention.attend`.
      mesh: of `sharding.make_mesh`; None for the devices of this process.

    Raises:
      WeightsError: something is missing, damaged or not supported.
    """
    found = parts.find(weights, controlnet, dtype, attention)
    noise, tokenizer = parts.texts(weights, found['text_encoder'].module)
    mesh = mesh or sharding.local_mesh()
    put = functools.partial(jax.device_put, device=sharding.replicated(mesh))
    encode = prompts.Prompts(found.pop('text_encoder'), tokenizer, put)
    return cls(found, encode, noise, mesh)

  def run(
    self,
    gray,
    keys,
    *,
    prompt=PROMPT,
    negative_prompt=NEGATIVE_PROMPT,
    strength=STRENGTH,
    steps=STEPS,
    guidance=GUIDANCE,
    scale=1.0,
    sampler='unipc',
    study=False,
  ):
    """Returns uint8 [B, H, W, 3], colored, of gray pictures.

    Args:
      gray: uint8 [B, H, W]; H and W are multiples of `networks.multiple`.
      keys: [B]; a picture depends on its own key, on no other.
      prompt, negative_prompt: what to see and what not to see. The text encoder
        reads 75 tokens; more are left out, and the log says so.
      strength: above 0, at most 1; how much of the way from noise is gone.
        Without meaning in a study.
      steps: from noise to picture; of them the share `strength` is taken.
      guidance: how far beyond the prompt to go; at most 1 leaves out the
        negative prompt, in half the time.
      scale: of what the ControlNet adds.
      sampler: 'unipc' or 'ddim'.
      study: start from noise, so that only edges are the photo's.

    Raises:
      ValueError: options that make no sense.
      FloatingPointError: the networks gave numbers that are none.
    """
    if any(side % self.networks.multiple for side in gray.shape[1:]):
      raise ValueError(
        f'sides must be multiples of {self.networks.multiple}, not '
        f'{gray.shape[2]}x{gray.shape[1]}'
      )
    table = self.table(strength, steps, sampler, study)
    texts = (negative_prompt, prompt) if guidance > 1 else (prompt,)
    shared = self._prompts(*texts), np.float32(guidance), np.float32(scale)
    made = self._generate(table, shared, gray, keys, not study)
    if not np.isfinite(made).all():
      raise FloatingPointError(
        'the networks gave numbers that are not finite: the weights are '
        'damaged, or too large for this dtype (float32 takes all)'
      )
    return np.rint(made * 255).astype(np.uint8)

  def _generate(self, table, shared, gray, keys, from_photo):
    """Returns float32 [B, H, W, 3], 0..1; a picture a device at a time."""
    size = sharding.parts(self._mesh)
    made = []
    for first in range(0, len(gray), size):
      # The last picture again, until all devices have one.
      rows = np.arange(first, first + size).clip(max=len(gray) - 1)
      made.append(
        self._pictures(table, shared, gray[rows], keys[rows], from_photo)
      )
    return np.concatenate(made)[: len(gray)]

  def _pictures(self, table, shared, gray, keys, from_photo):
    def run(part, static, shared, *inputs):
      return generation.on_each_device(
        part,
        (self.networks, *static),
        self._mesh,
        (self._params, *shared),
        inputs,
      )

    condition, carry = run(
      generation.begin, (from_photo,), (table.scale[0],), gray, keys
    )
    for step in range(len(table.timesteps)):
      row = jax.tree.map(operator.itemgetter(step), table)
      carry = run(generation.advance, (), (shared, row), condition, carry)
    return np.asarray(run(generation.finish, (), (), carry[0]))

  def table(self, strength=STRENGTH, steps=STEPS, sampler='unipc', study=False):
    """Returns the `schedulers.Table` of options of `run`, or ValueError."""
    return schedulers.table(
      self._noise, sampler, steps, 1.0 if study else strength
    )
