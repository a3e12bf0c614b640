"""TO BE DESCRIBED by its owner."""
