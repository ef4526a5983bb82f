"""The operator: decides which pod of a workload drains next, and holds deletions until it has."""
