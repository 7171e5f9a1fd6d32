"""T and log p: supports, their bijections, trees of latents, and the model itself."""
