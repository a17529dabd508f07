"""The specification: mirrors the packages; system/ is the whole thing over real parts."""
