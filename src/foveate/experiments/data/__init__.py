"""Images: by name or folder, split, decoded, held or streamed, augmented, in batches."""
