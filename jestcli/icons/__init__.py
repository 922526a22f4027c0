"""Ring 2, the embedded data: registry packages to shards."""
