"""Data sets: `sources` prepares and opens them, `input_pipeline` feeds them."""
