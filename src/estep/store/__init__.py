"""What a run keeps on the disk."""
