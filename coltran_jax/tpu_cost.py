"""What a program costs on a TPU, as estimated from its compiled text.

An estimate, never a measurement. The compiler notes how many cycles it expects
an operation to take; here they are added up, those of a loop as often as it
runs. Copies and collectives are not among them: they run beside. Bytes of HBM
are counted from the shapes, and are a second lower bound.
"""

import collections
import dataclasses

COLLECTIVES = (
  *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
  *('collective-permute', 'ragged-all-to-all', 'collective-broadcast'),
)
_FREE = {
  *('parameter', 'get-tuple-element', 'tuple', 'bitcast', 'constant', 'iota'),
  *('after-all', 'partition-id', 'replica-id', 'opt-barrier'),
}
_CALLS = ('while', 'conditional', 'call', 'async-start')
_SLICES = ('dynamic-slice', 'gather', 'slice')
_PACKAGE = 'coltran_jax'


@dataclasses.dataclass
class Cost:
  """Of one run of a program on one device.

  cycles: of all operations with an estimate. bytes: read from and written to
  HBM. collectives: {kind: [how many, bytes of their results]}. sources:
  {'FILE:LINE': cycles}. uncounted: {opcode: how many have no estimate}.
  unknown_loops: names of loops whose length is not known, counted once.
  """

  cycles: int = 0
  bytes: int = 0
  collectives: dict = dataclasses.field(default_factory=dict)
  sources: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  uncounted: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  unknown_loops: list = dataclasses.field(default_factory=list)

  def add(self, other, times=1):
    """Adds what runs `times` times."""
    self.cycles += times * other.cycles
    self.bytes += times * other.bytes
    for kind, (count, size) in other.collectives.items():
      self.add_collective(kind, times * count, times * size)
    for mine, theirs in (
      (self.sources, other.sources),
      (self.uncounted, other.uncounted),
    ):
      for key, value in theirs.items():
        mine[key] += times * value
    self.unknown_loops += other.unknown_loops

  def add_collective(self, kind, count, size):
    """Adds collectives of a kind, of `size` bytes together."""
    counts = self.collectives.setdefault(kind, [0, 0])
    counts[0] += count
    counts[1] += size


def estimate(program):
  """Returns the Cost of a `tpu_program.Program`."""
  return _of_computation(program, program.entry)


def _of_computation(program, name):
  cost = Cost()
  operations = {o.name: o for o in program.computations[name]}
  for operation in operations.values():
    if operation.opcode in _FREE or operation.opcode.endswith('-done'):
      continue
    if operation.opcode in _CALLS:
      _add_called(cost, program, operation)
      continue
    inside = _inside(program, operation)
    collectives = [o for o in (operation, *inside) if _collective(o)]
    for one in collectives:
      cost.add_collective(_collective(one), 1, _result_size(one))
    if operation in collectives:
      continue
    cost.bytes += _bytes(operations, operation, inside)
    if operation.opcode.endswith('-start'):
      continue
    if operation.cycles is None:
      target = operation.attribute(r'custom_call_target="(\w+)"')
      cost.uncounted[target or operation.opcode] += 1
      continue
    cost.cycles += operation.cycles
    cost.sources[program.source(operation, _PACKAGE)] += operation.cycles
  return cost


def _inside(program, operation):
  """Returns the operations of the computations that an operation calls."""
  return [
    o for name in operation.called for o in program.computations.get(name, ())
  ]


def _collective(operation):
  """Returns the kind of a collective, '' of another operation."""
  kind = operation.opcode.removesuffix('-start')
  return kind if kind in COLLECTIVES else ''


def _result_size(collective):
  sizes = [array.size for array in collective.arrays]
  if collective.opcode == 'all-gather-start':  # Operands, then results.
    return sum(sizes[len(sizes) // 2 :])
  if collective.opcode in ('all-reduce', 'all-reduce-start', 'reduce-scatter'):
    return sum(sizes)
  if collective.opcode == 'collective-permute-start':  # And two counters.
    return sizes[1]
  # Started ones name operands of the same sizes, too.
  return sum(sizes) // (2 if collective.opcode.endswith('-start') else 1)


def _add_called(cost, program, operation):
  costs = [_of_computation(program, name) for name in operation.called]
  if operation.opcode == 'conditional':  # The dearest branch.
    cost.add(max(costs, key=lambda c: c.cycles))
    return
  times = 1
  if operation.opcode == 'while':
    times = program.trip_count(operation)
    if times is None:
      cost.unknown_loops.append(operation.name)
      times = 1
  for one in costs:
    cost.add(one, times)


def _bytes(operations, operation, inside):
  """Returns the bytes of HBM that an operation reads and writes.

  operations: of its computation, by name. inside: those that it fuses.
  """
  if operation.opcode == 'custom-call' and operation.cycles is None:
    return 0  # Names memory, moves nothing.
  if operation.opcode.endswith('-start'):  # Both ends of a copy, or slice.
    return min((a.size for a in operation.arrays[:2]), default=0)
  read = sum(
    min(_whole(operations.get(name)), _sliced(inside, position))
    for position, name in enumerate(operation.operands)
  )
  written = _whole(operation)
  root = next((o for o in inside if o.is_root), operation)
  if root.opcode == 'dynamic-update-slice':  # In place.
    shapes = {o.name: o for o in inside or operations.values()}
    update = shapes.get(root.operands[1])
    written = min(written, sum(a.size for a in update.arrays) if update else 0)
  return read + written


def _whole(operation):
  """Returns the bytes of an operation's result that lie in HBM."""
  if operation is None:
    return 0
  return sum(a.size for a in operation.arrays if a.in_hbm)


def _sliced(inside, position):
  """Returns the bytes that a fusion reads of an operand: all, or slices."""
  parameter = next(
    (
      o.name
      for o in inside
      if o.opcode == 'parameter' and o.value == str(position)
    ),
    None,
  )
  users = [o for o in inside if parameter in o.operands] if parameter else []
  size = 0
  for user in users:
    if user.opcode == 'dynamic-update-slice' and user.operands[0] == parameter:
      continue
    if user.opcode not in _SLICES:
      return float('inf')
    size += sum(a.size for a in user.arrays)
  return size if users else float('inf')
