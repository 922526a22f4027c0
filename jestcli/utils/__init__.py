"""What every part may use: files, locks, errors, hashes, randomness, processes."""
