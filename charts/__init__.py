"""What the chart has that is generated, and the programs that generate it."""
