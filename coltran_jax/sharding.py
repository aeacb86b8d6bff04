"""The device mesh, the one rule that shards a state, host arrays -> devices.

Two axes: `data` splits the batch alone, `fsdp` splits batch and parameters. A
batch is split over both, so all devices work on different pictures.
"""

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

AXES = ('data', 'fsdp')
_SMALLEST = 1 << 12  # Numbers; less is not worth a gather.


def make_mesh(data=-1, fsdp=1, devices=None):
  """Returns a mesh of all devices; data=-1 takes what fsdp leaves.

  devices: None takes those of this run; others may be ones that are not there
  (see `aot`).

  Raises ValueError if the devices cannot be laid out so.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  if data == -1 and fsdp > 0 and count % fsdp == 0:
    data = count // fsdp
  if min(data, fsdp) < 1 or data * fsdp > count:
    raise ValueError(f'mesh data={data} fsdp={fsdp}: there are {count} devices')
  if data * fsdp < count and jax.process_count() > 1:
    raise ValueError(
      f'mesh data={data} fsdp={fsdp} leaves devices of {count} unused, which '
      'several processes cannot'
    )
  return _mesh(data, fsdp, devices[: data * fsdp])


def local_mesh():
  """Returns a mesh of the devices of this process, for work of its own."""
  devices = jax.local_devices()
  return _mesh(len(devices), 1, devices)


def _mesh(data, fsdp, devices):
  # Auto: the compiler places what no rule here names.
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((data, fsdp), AXES, axis_types=auto, devices=devices)


def replicated(mesh):
  """Returns the sharding of what all devices hold whole."""
  return NamedSharding(mesh, PartitionSpec())


def of_batch(mesh):
  """Returns the sharding of arrays [B, ...] over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


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
  return -(-count // mesh.size) * mesh.size


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
  """Returns global arrays [B, ...] of a dict of this process's rows."""
  sharding = of_batch(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }
