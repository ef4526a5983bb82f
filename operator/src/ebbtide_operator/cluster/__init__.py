"""Kubernetes as the operator sees and changes it."""
