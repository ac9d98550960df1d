"""What the training commands share: options, runs, checkpoints, the loop. Each is imported from its own file."""
