"""One file per method; its name is what `--ssl` takes."""
