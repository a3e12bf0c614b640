"""Running a finished network: opening it from a file, images in and out, tiles."""
