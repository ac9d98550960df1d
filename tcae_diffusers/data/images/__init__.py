"""Image sources and what is made of their images."""
