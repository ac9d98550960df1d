"""Presets of the training scripts, as YAML files."""
