"""The gRPC edge: everything that a trainer can reach."""
