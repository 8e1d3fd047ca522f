"""Files that `msf export --format diffusers` writes, next to copies of the engine's own modules that they import."""
