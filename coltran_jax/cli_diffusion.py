"""What the command line knows of Stable Diffusion: options and `check-weights`."""

import contextlib
import sys

from coltran_jax import command

# Of the run, and of loading; what is not given is left to their defaults.
_RUN = ('prompt', 'negative_prompt', 'strength', 'steps', 'guidance', 'study')
_LOAD = ('dtype', 'attention')


class OptionError(ValueError):
  """Options make no sense together; says what to change."""


def add_options(parser):
  """Adds the options that the functions here read."""
  group = parser.add_argument_group('Stable Diffusion with a ControlNet')
  group.add_argument(
    '--controlnet',
    metavar='DIR',
    help='folder of the ControlNet for Canny edges; Stable Diffusion itself is '
    '--weights, both in the layout of diffusers',
  )
  group.add_argument('--prompt', help="what to see (default: the study's)")
  group.add_argument(
    '--negative-prompt', help="what not to see (default: the study's)"
  )
  group.add_argument(
    '--strength',
    type=command.share,
    help='how much of the gray photo is given up, above 0 and at most 1 '
    '(default: 0.85)',
  )
  group.add_argument(
    '--steps', type=command.steps, help='from noise to photo (default: 20)'
  )
  group.add_argument(
    '--guidance',
    type=command.not_negative,
    help='how far beyond the prompt to go (default: 7.5)',
  )
  group.add_argument(
    '--study',
    action='store_true',
    default=None,
    help='as the study did: from noise and edges alone, luminance not put back',
  )
  group.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    help='of the two large networks (default: float32)',
  )
  group.add_argument(
    '--attention',
    choices=('auto', 'full', 'chunked', 'cudnn'),
    help='all exact; chunked takes less memory (default: auto)',
  )


def given(args):
  """Returns the options that were given, by name."""
  return _given(args, ('controlnet', *_RUN, *_LOAD))


def colorizer(args, weights):
  """Returns (DiffusionColorizer, keyword arguments of its `colorize`).

  Raises CheckpointError, or OptionError for options that make no sense
  together.
  """
  if not args.controlnet:
    raise OptionError('no ControlNet: give --controlnet DIR')
  if args.study and args.strength is not None:
    raise OptionError('--study starts from noise: leave out --strength')
  with installed():
    from coltran_jax import diffusion_pipeline

  made = diffusion_pipeline.DiffusionColorizer.from_pretrained(
    weights, args.controlnet, **_given(args, _LOAD)
  )
  try:
    made.diffusion.table(**_given(args, ('strength', 'steps', 'study')))
  except ValueError as error:
    raise OptionError(str(error)) from error
  options = {'num_samples': args.num_samples, 'seed': args.seed}
  return made, options | _given(args, _RUN)


@contextlib.contextmanager
def installed():
  """Says what to install where an import within fails."""
  try:
    yield
  except ModuleNotFoundError as error:
    raise OptionError(
      f'this needs the package {error.name}: install coltran-jax[diffusion], '
      "or run launch/install.sh '[diffusion]'"
    ) from error


def _given(args, names):
  values = {name: getattr(args, name) for name in names}
  return {name: value for name, value in values.items() if value is not None}


def add(commands):
  """Adds `check-weights` to argparse's commands."""
  check = commands.add_parser(
    'check-weights',
    help='look at folders of Stable Diffusion or a ControlNet',
    description='Say which tensors of a folder in the layout of diffusers '
    'match, what the network predicts and what memory it takes; reads no '
    'tensors.',
  )
  check.add_argument('folder', metavar='DIR')
  check.add_argument('-q', '--quiet', action='store_true', help='errors only')
  check.set_defaults(run=_check)


def _check(args):
  try:
    with installed():
      from coltran_jax.diffusion import parts
  except OptionError as error:
    return command.fail(error, command.EXIT_USAGE)

  report = parts.report(args.folder)
  if not args.quiet:
    print(*report.lines, sep='\n')
  for problem in report.problems:
    print(f'coltran: {problem}', file=sys.stderr)
  return command.EXIT_WEIGHTS if report.problems else 0
