"""Who calls, and what they may do. Knows neither gRPC nor Ray."""
