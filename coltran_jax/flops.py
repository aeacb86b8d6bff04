"""Counts the FLOPs of products: two for each multiplication and addition."""

import math

import jax.extend.core


def of_jaxpr(jaxpr):
  """Returns the FLOPs of all matrix products and convolutions of a jaxpr.

  Of a step as traced, before a compiler sees it, on all devices together. Loops
  count as often as they run, those of unknown length once, of branches the
  dearest.
  """
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    out = math.prod(equation.outvars[0].aval.shape)
    return 2 * out * math.prod(shape[axis] for axis in contracted)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    features = kernel[params['dimension_numbers'].rhs_spec[0]]
    out = math.prod(equation.outvars[0].aval.shape)
    return 2 * out * math.prod(kernel) // features
  inner = [
    of_jaxpr(jaxpr) for jaxpr in jax.extend.core.jaxprs_in_params(params)
  ]
  if name == 'cond':
    return max(inner)
  times = params['length'] if name == 'scan' else 1
  if name == 'shard_map':
    times = params['mesh'].size
  return times * sum(inner)
