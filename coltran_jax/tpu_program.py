"""Reads the text of a program that was compiled for a TPU (scheduled HLO)."""

import dataclasses
import functools
import math
import re

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 'bf16': 16, 'f16': 16}
_BITS |= {'s16': 16, 'u16': 16, 's32': 32, 'u32': 32, 'f32': 32}
_BITS |= {'s64': 64, 'u64': 64, 'f64': 64, 'c64': 64, 'c128': 128}
_COMMENT = re.compile(r'/\*.*?\*/')
_COMPUTATION = re.compile(r'(ENTRY\s+)?%?([\w.\-]+)\s*\(.*->.*\{\s*$')
_OPERATION = re.compile(r'\s+(ROOT\s+)?%?([\w.\-]+) = (.*)')
_OPCODE = re.compile(r'(?:^|\s)([a-z][\w\-]*)\(')
_ARRAY = re.compile(r'([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_TABLE = re.compile(r'(FileNames|FileLocations|StackFrames)$')


@dataclasses.dataclass(frozen=True)
class Array:
  """Bytes of an array, and whether it lies in HBM (else in memory on chip)."""

  size: int
  in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Operation:
  """A line of a computation: `%name = result opcode(operands), attributes`."""

  name: str
  opcode: str
  result: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool = False
  value: str = ''  # Of a constant; of a parameter its position.

  @functools.cached_property
  def arrays(self):
    """The arrays of its result, a tuple's one after the other."""
    return [
      Array(
        math.prod(map(int, filter(None, shape.split(','))))
        * _BITS.get(kind, 8)
        // 8,
        'S(' not in layout,
      )
      for kind, shape, layout in _ARRAY.findall(self.result)
    ]

  @property
  def cycles(self):
    """The compiler's estimate, None where it makes none."""
    found = self.attribute(r'"estimated_cycles":"(\d+)"')
    return None if found is None else int(found)

  @property
  def called(self):
    """Names of the computations that it calls, but for a loop's condition."""
    lists = re.findall(
      r'\b(?:body|calls|to_apply|true_computation|false_computation'
      r'|branch_computations)=(\{[^}]*\}|%[\w.\-]+)',
      self.attributes,
    )
    return _NAME.findall(' '.join(lists))

  def attribute(self, pattern):
    """Returns the first group of a pattern in the attributes, or None."""
    found = re.search(pattern, self.attributes)
    return found and found[1]


@dataclasses.dataclass(frozen=True)
class Program:
  """computations: {name: operations, as scheduled}; entry: the first's name.

  frames: {stack frame: (file, line, frame that called it)}.
  """

  computations: dict[str, list[Operation]]
  entry: str
  frames: dict[int, tuple[str, int, int]]

  def source(self, operation, package):
    """Returns 'FILE:LINE' in a package that an operation was made for, or ''.

    The innermost, when functions call each other.
    """
    frame = int(operation.attribute(r'stack_frame_id=(\d+)') or 0)
    while frame in self.frames:
      file, line, caller = self.frames[frame]
      _, found, inside = file.rpartition(f'/{package}/')
      if found:
        return f'{inside}:{line}'
      frame = min(caller, frame - 1)  # In a text of unknown origin, too.
    return ''

  def trip_count(self, loop):
    """Returns how often a `while` runs, None where its text does not say."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
      return int(known)
    # A counter from 0 below the one constant of the condition.
    condition = loop.attribute(r'condition=%?([\w.\-]+)')
    constants = [
      operation.value
      for operation in self.computations.get(condition, ())
      if operation.opcode == 'constant' and operation.result.startswith('s32[]')
    ]
    if len(constants) != 1 or not constants[0].isdigit():
      return None
    return int(constants[0])


def parse(text):
  """Returns the Program of `compiled.as_text()`.

  Raises ValueError if the text holds none.
  """
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if line[:1].isspace():
      if current is not None:
        operation = _operation(line)
        if operation:
          computations[current].append(operation)
      continue
    found = _COMPUTATION.match(line)
    if found:
      current = found[2]
      computations[current] = []
      entry = current if found[1] else entry
  if entry is None:
    raise ValueError('this is no compiled program: it has no ENTRY')
  return Program(computations, entry, _frames(text))


def _operation(line):
  found = _OPERATION.match(_COMMENT.sub('', line))
  opcode = found and _OPCODE.search(found[3])
  if not opcode:
    return None
  result, rest = found[3][: opcode.start()], found[3][opcode.end() :]
  inside, rest = _parentheses(rest)
  has_value = opcode[1] in ('constant', 'parameter')
  return Operation(
    name=found[2],
    opcode=opcode[1],
    result=result,
    operands=() if has_value else tuple(_NAME.findall(inside)),
    attributes=rest,
    is_root=bool(found[1]),
    value=inside if has_value else '',
  )


def _parentheses(text):
  """Returns (what stands before the closing parenthesis, what behind it)."""
  depth = 1
  for end, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return text[:end], text[end + 1 :]
  return text, ''


def _frames(text):
  """Returns a Program's frames, of the tables before its computations."""
  tables, table = {}, None
  for line in text.splitlines():
    if _TABLE.match(line):
      table = tables.setdefault(line, {})
    elif table is not None:
      number, _, rest = line.partition(' ')
      if number.isdigit():
        table[int(number)] = rest
      else:
        table = None
      if line.endswith('{') and '->' in line:
        break
  names = {k: v.strip('"') for k, v in tables.get('FileNames', {}).items()}

  def numbers(row):
    return {k: int(v) for k, v in re.findall(r'(\w+)=(\d+)', row)}

  places = {k: numbers(v) for k, v in tables.get('FileLocations', {}).items()}
  frames = {}
  for key, row in tables.get('StackFrames', {}).items():
    frame = numbers(row)
    place = places.get(frame.get('file_location_id'), {})
    frames[key] = (
      names.get(place.get('file_name_id'), ''),
      place.get('line', 0),
      frame.get('parent_frame_id', 1) - 1,  # They count from 1, 0 is none.
    )
  return frames
