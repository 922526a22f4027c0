"""The commands of `jest`, a module for each room. Nothing heavy is imported before one runs."""
