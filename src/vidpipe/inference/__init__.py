"""Using trained models on raw video files: guarded decoding, sliding windows, many models at once."""
