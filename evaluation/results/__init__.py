"""What a result holds, where it comes from, and how results are compared."""
