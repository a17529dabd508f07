"""A rolling update under load: `make rollout`."""
