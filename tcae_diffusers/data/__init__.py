"""Images to training batches: sources, views, order, and the cache of latents."""
