"""How far pictures are from each other: feature networks and metrics."""
