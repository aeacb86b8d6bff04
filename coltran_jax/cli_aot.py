"""The command `coltran aot`: parse, then compile for a TPU that is not there."""

import dataclasses
import json
import os

from coltran_jax import cli_diffusion, command


def add(commands):
  """Adds `aot` to argparse's commands."""
  aot = commands.add_parser(
    'aot',
    help='what a config needs on a TPU, compiled without one',
    description='Compile the train step, evaluation step and sampler of a '
    'config, or Stable Diffusion with a ControlNet, for a TPU topology and print '
    'what they need: an estimate. Exits with 1 if something does not fit. Needs '
    'the extra [aot].',
  )
  what = aot.add_mutually_exclusive_group(required=True)
  what.add_argument('--config', metavar='FILE[:ARG]', help='of configs/')
  what.add_argument(
    '--controlnet',
    metavar='DIR',
    help='instead: one picture by this ControlNet and the Stable Diffusion of '
    '--weights, on one device; no tensors are read',
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
  diffusion = aot.add_argument_group('for --controlnet')
  diffusion.add_argument('--weights', metavar='DIR')
  diffusion.add_argument(
    '--side', type=command.count, default=512, help='pixels (default: 512)'
  )
  diffusion.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='bfloat16',
    help='default: bfloat16',
  )
  diffusion.add_argument(
    '--attention',
    choices=('auto', 'full', 'chunked'),
    default='chunked',
    help='default: chunked',
  )
  aot.add_argument('--json', action='store_true', help='print JSON instead')
  aot.set_defaults(run=_aot, quiet=False)


def _aot(args):
  os.environ['JAX_PLATFORMS'] = 'cpu'  # Whatever is here, it is not asked.

  from coltran_jax import aot, aot_table
  from coltran_jax.diffusion import files

  try:
    reports = _of_controlnet(args) if args.controlnet else _of_config(args)
  except aot.AotError as error:
    return command.fail(error, command.EXIT_FAILED)
  except files.WeightsError as error:
    return command.fail(error, command.EXIT_WEIGHTS)
  except (cli_diffusion.OptionError, ValueError) as error:
    return command.fail(error, command.EXIT_USAGE)
  if args.json:
    rows = [dataclasses.asdict(r) | {'seconds': r.seconds} for r in reports]
    print(json.dumps({'note': aot_table.NOTE, 'programs': rows}, indent=2))
  else:
    print(aot_table.text(reports))
  problems = aot_table.problems(reports)
  for line in problems:
    command.fail(line, command.EXIT_FAILED)
  return command.EXIT_FAILED if problems else 0


def _of_config(args):
  from coltran_jax import aot, configuration

  config = configuration.load(args.config, args.set)
  programs = args.program or aot.PROGRAMS
  return list(aot.compile_all(config, args.topology, programs))


def _of_controlnet(args):
  if not args.weights:
    raise cli_diffusion.OptionError('no Stable Diffusion: give --weights DIR')
  with cli_diffusion.installed():
    from coltran_jax import aot_diffusion

  return [
    aot_diffusion.compile_picture(
      args.weights,
      args.controlnet,
      args.topology,
      args.side,
      args.dtype,
      args.attention,
    )
  ]
