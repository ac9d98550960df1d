"""Measures of autoencoders and of sets of images, without commands and files."""
