"""Images to training batches: sources, views, order, and the cache of latents.

Import from the modules: `image_sources` (with `build_image_source`), `image_folder`, `openmoji`,
`hf_datasets`, `multi_crop`, `token_masks`, `step_indexed_sampler`, `tokenizer_training_dataset`, `latent_shards`.
"""
