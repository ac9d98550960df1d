"""The cache of latents: format, writer, reader, export."""
