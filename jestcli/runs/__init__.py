"""What a run reads, its directory, and what is done with a finished one."""
