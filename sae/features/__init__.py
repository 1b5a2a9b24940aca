"""Records of single latents: where they fire on a text, and what their weights say."""
