"""The images: what is in each, and how they are built."""
