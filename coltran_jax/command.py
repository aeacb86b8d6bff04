"""What the parts of the command line share."""

import argparse
import functools
import math
import os
import pathlib
import re
import sys

from coltran_jax import decoding_rule

DEFAULT_WEIGHTS = 'coltran-sports'
EXIT_FAILED, EXIT_USAGE, EXIT_WEIGHTS, EXIT_RESUME = 1, 2, 3, 42
EXIT_AGAIN = 75  # EX_TEMPFAIL: nothing is wrong here, the same may work.


def _number(kind, text, low, high, wanted):
  try:
    value = kind(text)
  except ValueError:
    value = None
  if value is None or not low <= value < high:
    raise argparse.ArgumentTypeError(f'must be {wanted}, not {text!r}')
  return value


def count(text):
  """Returns a whole number, 1 or more, for argparse."""
  return _number(int, text, 1, math.inf, 'a whole number, 1 or more')


def port(text):
  """Returns a TCP port, for argparse."""
  return _number(int, text, 1, 1 << 16, 'a port, 1 to 65535')


def seed(text):
  """Returns a seed of 32 bits, for argparse."""
  return _number(int, text, 0, 1 << 32, 'a whole number, 0 to 4294967295')


def process_id(text):
  """Returns the number of a process, for argparse."""
  return _number(int, text, 0, math.inf, 'a whole number, 0 or more')


def not_negative(text):
  """Returns a number, 0 or more, for argparse."""
  return _number(float, text, 0, math.inf, 'a number, 0 or more')


def hint(text):
  """Returns (x, y, (red, green, blue)) of 'x,y,#rrggbb', for argparse."""
  found = re.fullmatch(r'(\d{1,9}),(\d{1,9}),#?([0-9a-fA-F]{6})', text)
  if not found:
    raise argparse.ArgumentTypeError(
      f"must be x,y,#rrggbb, as in '120,80,#aa3311', not {text!r}"
    )
  x, y, rgb = found.groups()
  return int(x), int(y), tuple(bytes.fromhex(rgb))


def add_weights(parser):
  """Adds the option that says which weights; None where nothing does."""
  parser.add_argument(
    '--weights',
    metavar='NAME|DIR',
    help='checkpoint directory, see `coltran convert`, or the name of weights '
    f'in this package (default: $COLTRAN_WEIGHTS, else {DEFAULT_WEIGHTS})',
  )


def weights(args):
  """Returns what --weights names, else the environment, of ColTran; else ours."""
  return args.weights or os.environ.get('COLTRAN_WEIGHTS') or DEFAULT_WEIGHTS


def share(text):
  """Returns a share above 0 and at most 1, for argparse."""
  return _number(
    float, text, 1e-6, math.nextafter(1, 2), 'above 0 and at most 1'
  )


def steps(text):
  """Returns a number of steps of diffusion, for argparse."""
  return _number(int, text, 1, 501, 'a whole number, 1 to 500')


def add_sampling(parser):
  """Adds the options that `sampling_options` reads."""
  parser.add_argument(
    '-n',
    '--num-samples',
    type=count,
    default=1,
    help='colorings a photo; `colorize` adds a contact sheet of several '
    '(default: 1)',
  )
  parser.add_argument('--seed', type=seed, default=0, help='default: 0')
  add_decoding(parser)
  parser.add_argument(
    '--sampler',
    choices=('exact', 'reference'),
    default='exact',
    help="'reference' repeats the published sampler and upsampling (default: "
    'exact)',
  )
  parser.add_argument(
    '--fast',
    action='store_true',
    help='leave out the third stage; not with --size 256 of `colorize`',
  )


def sampling_options(args):
  """Returns keyword arguments of `pipeline.Colorizer.colorize`."""
  names = ('num_samples', 'seed', 'sampler', 'fast')
  return {name: getattr(args, name) for name in names} | decoding(args)


def add_decoding(parser, note=''):
  """Adds the options that `decoding` reads; note: how their helps begin."""

  def add(name, what, **more):
    default = decoding_rule.DEFAULTS[name]
    parser.add_argument(
      f'--{name.replace("_", "-")}',
      type=functools.partial(_of_rule, name),
      help=f'{note}{what} (default: what the weights ask for, else {default:g})',
      **more,
    )

  add('temperature', '0 takes the most probable colors')
  add(
    'min_p',
    'draw no color that is less probable than this share of the most probable one',
  )
  add(
    'encoder_weight',
    'how much each draw heeds what the encoder expects: more is truer to the '
    'photo, less is more various',
  )
  add('vividness', 'how much vivid colors are preferred to dull ones')
  add(
    'mean_of',
    'each coloring is the mean of so many draws: what they agree on stays, speckle '
    'goes; 1 is more various',
    metavar='N',
  )


def _of_rule(name, text):
  """Returns a number of the decoding, for argparse."""
  try:
    value = int(text) if decoding_rule.is_whole(name) else float(text)
  except ValueError:
    value = text
  try:
    decoding_rule.check({name: value})
  except ValueError as error:
    raise argparse.ArgumentTypeError(error) from None
  return value


def decoding(args):
  """Returns those of the decoding's options that were given."""
  given = {name: getattr(args, name) for name in decoding_rule.DEFAULTS}
  return {name: value for name, value in given.items() if value is not None}


def add_data_dir(parser):
  """Adds the option that says where prepared data sets are."""
  parser.add_argument(
    '--data_dir',
    '--data-dir',
    metavar='DIR',
    default=os.environ.get('COLTRAN_DATA'),
    help='of the data sets that `coltran prepare` made (default: $COLTRAN_DATA)',
  )


def add_processes(parser):
  """Adds the options that tell a process its part of the work."""
  parser.add_argument(
    '--num-processes',
    type=count,
    metavar='N',
    help='share the work with N - 1 others that are given the same command, '
    'wherever they run (a TPU slice does so unasked); files in the output '
    'folder are all that they have in common',
  )
  parser.add_argument(
    '--process-id',
    type=process_id,
    metavar='I',
    help='which one this is, 0 to N - 1',
  )


def place(args):
  """Returns (process_id, num_processes), of jax where none are given.

  Raises ValueError if they do not fit together.
  """
  given = (args.process_id, args.num_processes)
  if given == (None, None):
    import jax

    return jax.process_index(), jax.process_count()
  if None in given:
    raise ValueError('--num-processes and --process-id go together')
  if args.process_id >= args.num_processes:
    raise ValueError('--process-id must be less than --num-processes')
  return given


def fail(message, code):
  """Returns the exit code; says what went wrong."""
  print(f'coltran: {message}', file=sys.stderr)
  return code


def keep_programs(jax):
  """Keeps compiled programs for the next start, unless told where already."""
  # Small programs too: there are many, together they take over a second.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  if jax.config.jax_compilation_cache_dir is not None:
    return
  try:
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(base) / 'coltran_jax'
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # The latter: nobody knows a home.
    return
  if os.access(folder, os.W_OK):
    jax.config.update('jax_compilation_cache_dir', str(folder))
