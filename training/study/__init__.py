"""Studies: arms and seeds from a plan file, each trained and measured by the real commands."""
