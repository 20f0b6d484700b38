"""The training of one model: the loop, its callbacks, its checkpoints and its engines."""
