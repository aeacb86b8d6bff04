"""The TPUs that programs can be compiled for, device by device.

A device is what jax calls one: a core of v2 and v3, else a chip.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one device has.

  clock: cycles a second. peak: bfloat16 FLOP a second, as published (float32
  products take one bfloat16 pass, too, unless another precision is asked for).
  bandwidth: bytes a second of HBM, as published. hbm: bytes that the compiler
  may use, as its errors say. topology: what `get_topology_desc` needs to be told.
  compiler: options of the compiler.
  """

  name: str
  clock: float
  peak: float
  bandwidth: float
  hbm: int
  topology: dict = dataclasses.field(default_factory=dict)
  compiler: dict = dataclasses.field(default_factory=dict)


def _gib(size):
  return round(size * 2**30)


# These have 128 MiB beside their products' units, and the compiler takes 16 for
# an operation if it is not told: a fifth slower (estimated, axial blocks).
_WIDE = {'xla_tpu_scoped_vmem_limit_kib': '65536'}
# By jax's device_kind. Peaks and bandwidths: cloud.google.com/tpu/docs; of v2
# and v3 half of a chip's.
CHIPS = {
  'TPU v2': Chip('v2', 700e6, 22.5e12, 350e9, _gib(7.48)),
  'TPU v3': Chip('v3', 940e6, 61.5e12, 450e9, _gib(15.48)),
  'TPU v4': Chip(
    'v4', 1050e6, 275e12, 1228e9, _gib(30.75), {'chip_config_name': 'megacore'}
  ),
  'TPU v5 lite': Chip(
    'v5e', 1500e6, 197e12, 819e9, _gib(15.75), compiler=_WIDE
  ),
  'TPU v5': Chip('v5p', 1750e6, 459e12, 2765e9, _gib(95.74)),
  'TPU v6 lite': Chip(
    'v6e', 1750e6, 918e12, 1640e9, _gib(31.25), compiler=_WIDE
  ),
}
_BY_NAME = {chip.name: chip for chip in CHIPS.values()}


def compiler_options(mesh):
  """Returns options for the devices of a mesh, for `jax.jit`; None on others."""
  chip = CHIPS.get(mesh.devices.flat[0].device_kind)
  return chip and (chip.compiler or None)


def of_topology(topology):
  """Returns the Chip of a topology such as 'v5e:4x4', chips along each axis.

  Raises ValueError that says what a topology looks like.
  """
  name, _, layout = topology.partition(':')
  if name not in _BY_NAME or not re.fullmatch(
    r'[1-9]\d*(x[1-9]\d*){1,2}', layout
  ):
    raise ValueError(
      f'a topology is CHIP:AxB or CHIP:AxBxC, as in v2:4x4, not {topology!r}; '
      f'chips are {", ".join(_BY_NAME)}'
    )
  return _BY_NAME[name]
