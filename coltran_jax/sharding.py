"""The device mesh, the one rule that shards a state, host arrays -> devices.

Three axes: `data` splits the batch alone, `fsdp` splits batch and parameters,
`seq` splits the rows of each picture, for models that can (`SplitRows`). A
batch is split over the first two, and each group of `seq` devices has its
pictures whole: they are bytes.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

_BATCH = ('data', 'fsdp')
_ROWS = 'seq'
_SMALLEST = 1 << 12  # Numbers; less is not worth a gather.


def make_mesh(data=-1, fsdp=1, seq=1, devices=None):
  """Returns a mesh of all devices; data=-1 takes what the others leave.

  devices: None takes those of this run; others may be ones that are not there
  (see `aot`).

  Raises ValueError if the devices cannot be laid out so.
  """
  devices = jax.devices() if devices is None else devices
  count, others = len(devices), fsdp * seq
  if data == -1 and others > 0 and count % others == 0:
    data = count // others
  shape = (data, fsdp, seq)
  used = data * others
  what = f'mesh data={data} fsdp={fsdp} seq={seq}'
  if min(shape) < 1 or used > count:
    raise ValueError(f'{what}: there are {count} devices')
  if used < count and jax.process_count() > 1:
    raise ValueError(
      f'{what} leaves devices of {count} unused, which several processes cannot'
    )
  return _mesh(shape, devices[:used])


def local_mesh():
  """Returns a mesh of the devices of this process, for work of its own."""
  devices = jax.local_devices()
  return _mesh((len(devices), 1, 1), devices)


def _mesh(shape, devices):
  # Auto: the compiler places what no rule here names.
  auto = (jax.sharding.AxisType.Auto,) * 3
  axes = (*_BATCH, _ROWS)
  return jax.make_mesh(shape, axes, axis_types=auto, devices=devices)


def replicated(mesh):
  """Returns the sharding of what all devices hold whole."""
  return NamedSharding(mesh, PartitionSpec())


def of_batch(mesh):
  """Returns the sharding of arrays [B, ...]: see `parts`."""
  return NamedSharding(mesh, PartitionSpec(_BATCH))


def parts(mesh):
  """Returns into how many parts a batch is split."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def share(mesh):
  """Returns which of a batch's parts this process reads, increasing.

  Those that its devices work on: a mesh follows the wires between devices, and
  may have those of other processes between two of one. Processes whose devices
  work on the same pictures read the same parts.

  Raises ValueError if their devices have only some pictures in common.
  """
  needed = {}  # Parts of the batch, by process.
  groups = mesh.devices.reshape(parts(mesh), -1)
  for part, devices in enumerate(groups):
    for device in devices:
      needed.setdefault(device.process_index, set()).add(part)
  shares = {frozenset(one) for one in needed.values()}
  if len({len(one) for one in shares}) > 1 or len(groups) < sum(
    map(len, shares)
  ):
    raise ValueError(
      f'mesh seq={mesh.shape[_ROWS]} does not fit the devices of a process'
    )
  return tuple(sorted(needed[jax.process_index()]))


def shapes(tree, shardings):
  """Returns the shapes and dtypes of a tree of arrays, with shardings.

  shardings: a tree like it, or one sharding for all leaves.
  """
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def round_up(mesh, count):
  """Returns the least batch size of `count` or more that all devices share."""
  return -(-count // parts(mesh)) * parts(mesh)


def replicate(mesh, tree):
  """Returns the arrays of a tree, the same on all hosts, on all devices."""
  # A copy by a program: device_put cannot reach the devices of other hosts.
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def of_state(mesh, state):
  """Returns a tree of shardings for a state (arrays or their shapes).

  The rule: the longest axis that `fsdp` divides is split over it, in arrays
  that are large enough; ties go to the last. Moments and moving averages have
  the shapes of their parameters, and so their sharding.
  """
  size = mesh.shape['fsdp']

  def rule(leaf):
    spec = [None] * len(leaf.shape)
    if size > 1 and int(np.prod(leaf.shape)) >= _SMALLEST:
      fitting = [
        (length, axis)
        for axis, length in enumerate(leaf.shape)
        if length % size == 0
      ]
      if fitting:
        spec[max(fitting)[1]] = 'fsdp'
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(rule, state)


def to_devices(mesh, batch):
  """Returns global arrays [B, ...] of a dict of this process's rows, see `share`."""
  sharding = of_batch(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }


@dataclasses.dataclass(frozen=True)
class SplitRows:
  """An upsampler whose `apply` splits each picture over the mesh's `seq` axis.

  Every device has some rows of all columns, and for attention along columns
  some columns of all rows (`axial.turn`). All that happens within `shard_map`:
  of a program for whole pictures the partitioner was seen to lose the sum of
  gradients over `data`.

  Raises ValueError if the model or its resolution cannot be split so.
  """

  model: Any
  mesh: jax.sharding.Mesh

  def __post_init__(self):
    size = self.mesh.shape[_ROWS]
    if not hasattr(self.model, 'seq_axis'):
      raise ValueError(
        f'mesh.seq is {size}, but a {type(self.model).__name__} cannot be '
        'split by rows: take mesh.seq=1'
      )
    if any(length % size for length in self.model.resolution):
      raise ValueError(
        f'mesh.seq {size} does not divide the resolution '
        f'{self.model.resolution}'
      )

  def apply(self, variables, gray, symbols, channel, train=False, rngs=None):
    """Returns what the model's `apply` does, the logits [B, H, W, V] split."""
    model = self.model.clone(seq_axis=_ROWS)

    def of_device(variables, gray, symbols, channel, rngs):
      place = jax.lax.axis_index(self.mesh.axis_names)
      rngs = jax.tree.map(lambda key: jax.random.fold_in(key, place), rngs)
      return model.apply(
        variables, gray, symbols, channel, train=train, rngs=rngs
      )

    whole, batch = PartitionSpec(), PartitionSpec(_BATCH)
    rows = PartitionSpec(_BATCH, _ROWS)
    return jax.shard_map(
      of_device,
      mesh=self.mesh,
      in_specs=(whole, rows, rows, batch, whole),
      out_specs=(rows, whole),
    )(variables, gray, symbols, channel, rngs)
