"""Stable Diffusion with a ControlNet: a house of its own beside ColTran's."""
