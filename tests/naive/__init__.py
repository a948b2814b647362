"""Selection written a second time, slowly and differently: what the service must agree with."""
