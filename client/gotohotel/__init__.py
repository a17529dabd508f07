"""The messages and typed gRPC stubs of GotoHotel."""
