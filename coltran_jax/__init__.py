"""The Colorization Transformer (ColTran, ICLR 2021) in JAX/Flax."""
