"""A real Kubernetes cluster on this machine for the tests and the demo."""
