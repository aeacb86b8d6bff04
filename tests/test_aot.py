"""Programs compiled for TPUs that are not there: read, counted, reported."""

import importlib.metadata
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from coltran_jax import (
  aot,
  aot_table,
  cli,
  configuration,
  flops,
  models,
  tpu_chips,
  tpu_cost,
  tpu_program,
)


@pytest.fixture
def text(fixtures):
  """The program of fixtures/aot/example.py for a TPU v5e of four chips."""
  return (fixtures / 'aot/example.txt').read_text()


def loops(program):
  return {
    operation.name: operation
    for operations in program.computations.values()
    for operation in operations
    if operation.opcode == 'while'
  }


def test_a_loops_length_is_read_where_the_program_knows_it(text):
  program = tpu_program.parse(text)
  lengths = {n: program.trip_count(o) for n, o in loops(program).items()}
  assert lengths == {'while.25': 5, 'while.24': None}
  assert tpu_cost.estimate(program).unknown_loops == ['while.24']


def test_a_loop_costs_as_much_as_its_length_says(text):
  program = tpu_program.parse(text)
  loop = loops(program)['while.25']
  (name,) = loop.called
  cycles = sum(o.cycles or 0 for o in program.computations[name])
  assert cycles > 0
  condition = loop.attribute(r'condition=%([\w.\-]+)')
  old = next(
    o for o in program.computations[condition] if o.opcode == 'constant'
  )
  longer = text.replace(
    f'%{old.name} = s32[]{{:T(128)}} constant(5)',
    f'%{old.name} = s32[]{{:T(128)}} constant(12)',
  )
  assert longer != text
  before = tpu_cost.estimate(program)
  after = tpu_cost.estimate(tpu_program.parse(longer))
  assert after.cycles - before.cycles == 7 * cycles


def test_costs_are_laid_to_the_packages_innermost_line(text):
  cost = tpu_cost.estimate(tpu_program.parse(text))
  assert sum(cost.sources.values()) == cost.cycles
  # The products of the two loops, and the sum of sines.
  assert {'example.py:7', 'example.py:17'} <= set(cost.sources)
  away = text.replace('/coltran_jax/', '/elsewhere/')
  cost = tpu_cost.estimate(tpu_program.parse(away))
  assert set(cost.sources) == {''}


def test_collectives_are_counted_with_their_bytes(text):
  cost = tpu_cost.estimate(tpu_program.parse(text))
  assert cost.collectives == {'all-reduce': [1, 4 * (5 * 256 + 1)]}


HEAD = 'HloModule m, is_scheduled=true\n\n'


def one_operation(line, before=''):
  """The cost of an ENTRY that holds one operation on f32[1024] in HBM."""
  return tpu_cost.estimate(
    tpu_program.parse(
      f'{HEAD}{before}ENTRY %main (p: f32[1024]) -> f32[1024] {{\n'
      '  %p = f32[1024]{0:T(1024)} parameter(0)\n'
      '  %q = f32[1024]{0:T(1024)S(1)} parameter(1)\n'
      f'  ROOT %r = {line}\n}}\n'
    )
  )


CYCLES = 'backend_config={"estimated_cycles":"7"}'


@pytest.mark.parametrize(
  ('line', 'kind', 'size'),
  [
    ('f32[64]{0} all-reduce(%p)', 'all-reduce', 256),
    ('(f32[64]{0}, bf16[64]{0}) all-reduce-start(%p)', 'all-reduce', 384),
    ('(f32[64]{0}, f32[256]{0}) all-gather-start(%p)', 'all-gather', 1024),
    ('f32[16]{0} reduce-scatter(%p)', 'reduce-scatter', 64),
    ('f32[16]{0} fusion(%p), calls=%inner', 'reduce-scatter', 64),
    (
      '((f32[64]{0}), f32[16]{0}) async-start(%p), calls=%inner',
      'reduce-scatter',
      64,
    ),
    (
      '(f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%p)',
      'collective-permute',
      256,
    ),
  ],
)
def test_collectives_of_every_form_are_counted(line, kind, size):
  inner = (
    '%inner (a: f32[64]) -> f32[16] {\n  %a = f32[64]{0} parameter(0)\n'
    '  ROOT %s = f32[16]{0} reduce-scatter(%a), dimensions={0}\n}\n\n'
  )
  assert one_operation(line, inner).collectives == {kind: [1, size]}


@pytest.mark.parametrize(
  ('line', 'size'),
  [
    (f'f32[1024]{{0}} negate(%p), {CYCLES}', 8192),
    (f'f32[1024]{{0}} negate(%q), {CYCLES}', 4096),
    (f'bf16[1024]{{0:S(1)}} convert(%p), {CYCLES}', 4096),
    (f'(f32[1024]{{0}}, /*index=1*/pred[8]{{0}}) fusion(%q), {CYCLES}', 4104),
    ('(f32[1024]{0:S(1)}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%p)', 4096),
    ('f32[1024]{0} bitcast(%p)', 0),
  ],
)
def test_bytes_are_those_that_pass_through_hbm(line, size):
  assert one_operation(line).bytes == size


def test_a_slice_of_an_array_costs_the_slice_alone():
  inside = (
    '%inside (a: f32[1024]) -> f32[8] {\n'
    '  %a = f32[1024]{0} parameter(0)\n'
    '  %zero = s32[] constant(0)\n'
    '  ROOT %s = f32[8]{0} dynamic-slice(%a, %zero), dynamic_slice_sizes={8}\n'
    '}\n\n'
  )
  line = f'f32[8]{{0}} fusion(%p), kind=kLoop, calls=%inside, {CYCLES}'
  assert one_operation(line, inside).bytes == 2 * 32


def test_of_branches_the_dearest_counts():
  branches = ''.join(
    f'%{name} (a: f32[8]) -> f32[8] {{\n  ROOT %a{name} = f32[8]{{0}} '
    f'parameter(0), backend_config={{}}\n  %n{name} = f32[8]{{0}} '
    f'negate(%a{name}), backend_config={{"estimated_cycles":"{cycles}"}}\n}}\n\n'
    for name, cycles in (('yes', 30), ('no', 50))
  )
  line = (
    'f32[1024]{0} conditional(%q, %p, %p), true_computation=%yes, '
    'false_computation=%no'
  )
  assert one_operation(line, branches).cycles == 50


def test_what_has_no_estimate_is_named():
  cost = one_operation('f32[1024]{0} custom-call(%p), custom_call_target="Odd"')
  assert cost.uncounted == {'Odd': 1}


def test_a_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    tpu_program.parse('HloModule nothing\n')


def test_flops_count_products_loops_and_the_dearest_branch():
  x, w = jnp.ones((8, 16)), jnp.ones((16, 16))
  one = 2 * 8 * 16 * 16

  def count(function):
    return flops.of_jaxpr(jax.make_jaxpr(function)(x, w).jaxpr)

  def looped(x, w):
    return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ w), x)

  def chosen(x, w):
    return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

  assert count(lambda x, w: jnp.sin(x) @ w) == one
  assert count(jax.jit(looped)) == 5 * one
  assert count(chosen) == 2 * one

  # Backward has two products for each; recomputing adds one.
  def loss(f):
    return jax.grad(lambda x, w: f(x, w).sum(), argnums=(0, 1))

  def layer(x, w):
    return jnp.sin(jnp.sin(x @ w))

  assert count(loss(layer)) == 3 * one
  assert count(loss(jax.checkpoint(layer))) == 4 * one


def test_flops_of_a_convolution_are_those_of_its_products():
  image, kernel = jnp.ones((2, 9, 9, 8)), jnp.ones((3, 3, 8, 4))

  def run(image, kernel):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
      image, kernel, (1, 1), 'VALID', dimension_numbers=numbers
    )

  count = flops.of_jaxpr(jax.make_jaxpr(run)(image, kernel).jaxpr)
  assert count == 2 * (2 * 7 * 7 * 4) * (3 * 3 * 8)


@pytest.mark.parametrize('name', ['v2', 'v2:4', 'v9:2x2', 'v2:0x4', 'v2:4x4x'])
def test_a_topology_that_makes_no_sense_is_refused(name):
  with pytest.raises(ValueError, match='as in v2:4x4'):
    tpu_chips.of_topology(name)


@pytest.mark.parametrize('topology', ['v2:2x2', 'v4:2x2x1', 'v5e:2x2'])
def test_a_large_product_is_estimated_near_the_peak_of_each_chip(topology):
  chip = tpu_chips.of_topology(topology)
  device = aot.devices(topology)[0]
  assert tpu_chips.CHIPS[device.device_kind] == chip
  one = jax.sharding.SingleDeviceSharding(device)
  shape = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=one)
  compiled = jax.jit(jnp.matmul).lower(shape, shape).compile()
  cost = tpu_cost.estimate(tpu_program.parse(compiled.as_text()))
  share = 2 * 8192**3 / (cost.cycles / chip.clock) / chip.peak
  assert 0.65 < share < 1.01


def run(capsys, *args):
  """Returns (exit code, stdout, stderr) of `coltran aot`."""
  code = cli.main(['aot', *map(str, args)])
  return code, *capsys.readouterr()


CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'


def test_the_command_reports_every_program_of_a_config(capsys):
  options = ('--config', f'{CONFIGS}/color_upsampler.py:debug', '--json')
  code, out, err = run(capsys, *options, '--topology', 'v5e:2x2')
  assert (code, err) == (0, '')
  made = json.loads(out)
  assert made['note'].startswith('ESTIMATE')
  seconds = [r.pop('seconds') for r in made['programs']]
  reports = [aot.Report(**r) for r in made['programs']]
  assert seconds == [r.seconds for r in reports]
  assert [r.program for r in reports] == list(aot.PROGRAMS)
  train, evaluate, sampler = reports
  assert (train.devices, train.batch, sampler.devices) == (4, 8, 1)
  # Gradients of all parameters, summed over the devices; what the inputs' tables
  # share is summed once.
  model = models.build('color_upsampler', _model('color_upsampler'))
  count = sum(math.prod(s) for s in models.parameter_shapes(model).values())
  size = train.collectives['all-reduce'][1]
  assert 3 * count < size < 4 * count + 4096
  # Backward has two products for each; evaluation asks for three channels.
  assert train.flops == evaluate.flops
  for report in reports:
    assert report.compute_seconds > 0 < report.hbm < report.hbm_available
    assert report.unknown_loops == []
  text = aot_table.text(reports)
  assert 'ESTIMATE' in text
  assert re.search(r'train_step, dearest lines:\n.* [\w/]+\.py:\d+', text)


def _model(name):
  return configuration.load(f'{CONFIGS}/{name}.py:debug').model.to_dict()


def test_the_command_says_by_how_much_a_config_does_not_fit(capsys):
  code, out, err = run(
    capsys,
    *('--config', f'{CONFIGS}/color_upsampler.py:debug'),
    *('--topology', 'v2:2x2', '--program', 'train_step'),
    *('--set', 'batch_size=2097152', '--set', 'eval_batch_size=8'),
  )
  assert code == 1
  needed, over, there = map(
    float,
    re.search(r'needs ([\d.]+) .*, ([\d.]+) .*the ([\d.]+)', err).groups(),
  )
  assert there == 7.48
  assert over > 0
  assert needed == pytest.approx(there + over, abs=0.02)
  assert 'share of peak' in out


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (('--topology', 'v2:4'), 'as in v2:4x4'),
    (('--topology', 'v2:2x2', '--set', 'batch_size=7'), 'cannot be split'),
  ],
)
def test_what_cannot_be_compiled_is_a_usage_error(capsys, options, message):
  config = f'{CONFIGS}/color_upsampler.py:debug'
  code, _, err = run(capsys, '--config', config, *options)
  assert code == 2
  assert message in err


def test_a_topology_that_libtpu_refuses_is_said():
  with pytest.raises(aot.AotError, match='v5e:3x5'):
    aot.devices('v5e:3x5')


@pytest.mark.parametrize(
  'stage', ['colorizer', 'color_upsampler', 'spatial_upsampler']
)
def test_a_train_step_needs_what_it_needed(stage, fixtures):
  # One layer of each kind, a fourth of the paper's width: compiles in seconds.
  config = configuration.load(
    f'{CONFIGS}/{stage}.py:tpu,debug',
    ['model.hidden_size=128', 'model.mlp_size=128'],
  )
  (report,) = aot.compile_all(config, 'v5e:2x2', ['train_step'])
  made = {
    'hbm': report.hbm,
    'collectives': {k: n for k, (n, _) in report.collectives.items()},
    'collective_bytes': sum(size for _, size in report.collectives.values()),
    'flops': report.flops,
    'bytes': report.bytes,
    'compute_seconds': report.compute_seconds,
  }
  recorded = json.loads((fixtures / 'aot/train_steps.json').read_text())
  versions = recorded['versions']
  there = {name: importlib.metadata.version(name) for name in versions}
  assert there == versions, 'record anew: other versions compile otherwise'
  expected = recorded[stage]
  assert made.pop('collectives') == expected.pop('collectives')
  assert made == pytest.approx(expected, rel=0.05), json.dumps(made)


def test_the_command_compiles_a_controlnet_without_its_tensors(
  capsys, fixtures, tmp_path
):
  folder = fixtures / 'diffusion' / 'pipe'
  options = ('--topology', 'v5e:2x2', '--side', 32, '--json')
  code, out, err = run(
    capsys, '--controlnet', folder / 'controlnet', '--weights', folder, *options
  )
  assert (code, err) == (0, '')
  (made,) = json.loads(out)['programs']
  assert (made['program'], made['devices'], made['over']) == (
    'controlnet',
    1,
    0,
  )
  assert made['flops'] > 0 < made['compute_seconds']
  for change, message, code in (
    (('--controlnet', tmp_path, '--weights', folder), 'config.json', 3),
    (('--controlnet', folder), 'give --weights', 2),
    (
      ('--controlnet', folder / 'controlnet', '--weights', folder, '--side', 3),
      'must be a multiple',
      2,
    ),
  ):
    found, _, err = run(capsys, *options, *change)
    assert (found, message in err) == (code, True), err
