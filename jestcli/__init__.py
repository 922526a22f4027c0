"""Reproduce JEST: joint example selection for contrastive image-text training."""
