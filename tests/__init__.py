"""The specification: folders mirror the packages; system/ tests the whole system with real parts."""
