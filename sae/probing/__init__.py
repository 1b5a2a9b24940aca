"""Linear probes on activations and codes: how they are trained, and how latents are ranked."""
