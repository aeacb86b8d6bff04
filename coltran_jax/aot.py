"""Compiles what training and sampling run, for TPUs that need not be there."""

import dataclasses
import functools
import os
import re

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from coltran_jax import (
  flops,
  sampling,
  sharding,
  tpu_chips,
  tpu_cost,
  tpu_program,
)
from coltran_jax import trainer as trainers

PROGRAMS = ('train_step', 'eval_step', 'sampler')
# libtpu looks for TPUs, and locks out others that compile, unless told.
_ALONE = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_STDERR_LOG_LEVEL': '4',
}


class AotError(Exception):
  """A topology that cannot be compiled for; says why."""


@dataclasses.dataclass
class Report:
  """What one program is estimated to need, JSON-ready.

  program: one of PROGRAMS, or another's name. chip: its name. devices: that run it. batch: pictures
  of all devices. hbm, hbm_available, over: bytes a device, at its fullest; over
  is what there is too little, 0 if it fits. Of what does not fit nothing else is
  known. flops: of the products that the model asks for, a device. bytes: to and
  from HBM, a device. collectives: {kind: [how many, bytes]}. compute_seconds,
  hbm_seconds: lower bounds, of cycles and of bytes. mfu: share of the peak, were
  the larger one the time it takes. sources: [[seconds, 'FILE:LINE']], dearest
  first. uncounted, unknown_loops: see `tpu_cost.Cost`.
  """

  program: str
  chip: str
  devices: int
  batch: int
  hbm: int
  hbm_available: int
  over: int = 0
  flops: float | None = None
  bytes: int | None = None
  collectives: dict | None = None
  compute_seconds: float | None = None
  hbm_seconds: float | None = None
  mfu: float | None = None
  sources: list | None = None
  uncounted: dict | None = None
  unknown_loops: list | None = None

  @property
  def seconds(self):
    """The estimate of the program's time, None if it does not fit."""
    if self.compute_seconds is None:
      return None
    return max(self.compute_seconds, self.hbm_seconds)


def devices(topology):
  """Returns jax devices, not there, of a topology such as 'v2:4x4'.

  Raises AotError.
  """
  chip = tpu_chips.of_topology(topology)
  for name, value in _ALONE.items():
    os.environ.setdefault(name, value)
  try:
    description = topologies.get_topology_desc(
      topology, platform='tpu', **chip.topology
    )
  except (RuntimeError, ValueError) as error:
    raise AotError(f'{topology}: {" ".join(str(error).split())}') from error
  return list(description.devices)


def compile_all(config, topology, programs=PROGRAMS):
  """Yields the Report of each of the programs that a config has.

  Raises AotError, ConfigError, or ValueError for the name of a topology.
  """
  chip = tpu_chips.of_topology(topology)
  mesh = sharding.make_mesh(**config.mesh, devices=devices(topology))
  trainer = trainers.Trainer(config, mesh)
  for program in programs:
    traced, batch, used = _trace(trainer, program)
    if traced is not None:
      work = flops.of_jaxpr(_without_remat(trainer, program, traced).jaxpr)
      yield report(program, traced, chip, used, batch, work / used)


def _trace(trainer, program):
  """Returns (traced program or None, pictures, devices)."""
  config, mesh = trainer.config, trainer.mesh
  if program == 'train_step':
    return trainer.trace_train_step(), config.batch_size, mesh.size
  if program == 'eval_step':
    return trainer.trace_eval_step(), config.eval_batch_size, mesh.size
  if config.name == 'cnn':
    return None, 0, 0  # Its evaluation is what it does with photos.
  if config.name == 'colorizer':
    return _trace_sampler(trainer)
  one = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
  shape = (1, *trainer.model.resolution)
  upsample = functools.partial(sampling.upsample, trainer.model)
  traced = jax.jit(upsample).trace(
    sharding.shapes(trainer.state_shapes.params, one),
    jax.ShapeDtypeStruct(shape, jnp.int32, sharding=one),
    jax.ShapeDtypeStruct((*shape, 3), jnp.int32, sharding=one),
  )
  return traced, 1, 1


def _trace_sampler(trainer):
  """Returns the same of the autoregressive sampler, a tile a device."""
  mesh = trainer.mesh
  shards = mesh.shape['data']
  batch = sampling.TILE * shards
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
  shape = (batch, *trainer.model.gray_resolution)
  sample = functools.partial(sampling.sample, trainer.model, mesh=mesh)
  traced = jax.jit(sample).trace(
    sharding.shapes(trainer.state_shapes.params, sharding.replicated(mesh)),
    jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split),
    sharding.shapes(keys, split),
  )
  return traced, batch, shards


def _without_remat(trainer, program, traced):
  """Returns a step traced with nothing computed twice."""
  config = trainer.config
  if program != 'train_step' or not config.model.get('remat', False):
    return traced
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.model.remat = False
  return trainers.Trainer(config, trainer.mesh).trace_train_step()


def report(program, traced, chip, used, batch, work):
  """Returns the Report of a traced program, which it compiles.

  Args:
    program: its name.
    chip: of `tpu_chips`.
    used, batch: devices that run it, pictures of all of them.
    work: FLOPs of its products, a device.

  Raises AotError if the compiler fails for another reason than memory.
  """
  made = Report(program, chip.name, used, batch, 0, chip.hbm)
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    made.hbm, made.hbm_available = _too_much(str(error))
    made.over = made.hbm - made.hbm_available
    return made
  memory = compiled.memory_analysis()
  cost = tpu_cost.estimate(tpu_program.parse(compiled.as_text()))
  made.hbm = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
  made.over = max(0, made.hbm - chip.hbm)
  made.flops, made.bytes = work, cost.bytes
  made.collectives = cost.collectives
  made.compute_seconds = cost.cycles / chip.clock
  made.hbm_seconds = cost.bytes / chip.bandwidth
  made.mfu = work / chip.peak / made.seconds
  made.sources = [
    [cycles / chip.clock, source]
    for source, cycles in cost.sources.most_common()
  ]
  made.uncounted = dict(cost.uncounted)
  made.unknown_loops = cost.unknown_loops
  return made


_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def _too_much(message):
  """Returns the bytes (asked for, available) of the compiler's error.

  Raises AotError for another error.
  """
  size = r'([\d.]+)([KMGT]?)'
  found = re.search(rf'Used {size} of {size} hbm', message) or re.search(
    rf'\({size}\) exceeds available HBM \({size}\)', message
  )
  if not found:
    raise AotError(f'the compiler failed: {" ".join(message.split())[:2000]}')
  number, unit, limit, limit_unit = found.groups()
  return (
    round(float(number) * _UNITS[unit]),
    round(float(limit) * _UNITS[limit_unit]),
  )
