"""One-GPU results: parts of a few minutes, each leaving an archive from which the next goes on."""
