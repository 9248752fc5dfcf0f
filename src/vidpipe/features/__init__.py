"""What a training never changes, computed once and kept: frozen features of clips, on the disk."""
