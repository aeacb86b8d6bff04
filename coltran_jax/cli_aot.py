"""The command `coltran aot`: parse, then compile for a TPU that is not there."""

import dataclasses
import json
import os

from coltran_jax import command


def add(commands):
  """Adds `aot` to argparse's commands."""
  aot = commands.add_parser(
    'aot',
    help='what a config needs on a TPU, compiled without one',
    description='Compile the train step, evaluation step and sampler of a '
    'config for a TPU topology and print what they need: an estimate. Exits '
    'with 1 if something does not fit. Needs the extra [aot].',
  )
  aot.add_argument(
    '--config', required=True, metavar='FILE[:ARG]', help='of configs/'
  )
  aot.add_argument(
    '--topology',
    required=True,
    metavar='CHIP:AxB[xC]',
    help='chips along each axis, as in v2:4x4, v4:2x2x4, v5e:16x16',
  )
  aot.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='change the config, as in --set batch_size=256',
  )
  aot.add_argument(
    '--program',
    action='append',
    choices=('train_step', 'eval_step', 'sampler'),
    help='only this one; may be given again',
  )
  aot.add_argument('--json', action='store_true', help='print JSON instead')
  aot.set_defaults(run=_aot, quiet=False)


def _aot(args):
  os.environ['JAX_PLATFORMS'] = 'cpu'  # Whatever is here, it is not asked.

  from coltran_jax import aot, aot_table, configuration

  try:
    config = configuration.load(args.config, args.set)
    programs = args.program or aot.PROGRAMS
    reports = list(aot.compile_all(config, args.topology, programs))
  except (configuration.ConfigError, ValueError) as error:
    return command.fail(error, command.EXIT_USAGE)
  except aot.AotError as error:
    return command.fail(error, command.EXIT_FAILED)
  if args.json:
    rows = [dataclasses.asdict(r) | {'seconds': r.seconds} for r in reports]
    print(json.dumps({'note': aot_table.NOTE, 'programs': rows}, indent=2))
  else:
    print(aot_table.text(reports))
  problems = aot_table.problems(reports)
  for line in problems:
    command.fail(line, command.EXIT_FAILED)
  return command.EXIT_FAILED if problems else 0
